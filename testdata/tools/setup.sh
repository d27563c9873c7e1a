#!/usr/bin/env bash
# Installs what the demo, the tests, … need and this machine lacks. usage: setup.sh demo|test|bench|static|fuzz
set -euo pipefail

# Each line: a program that tells whether the package is there, and the package.
demo="docker-registry docker-registry
skopeo skopeo
debootstrap debootstrap
busybox busybox-static
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
cc gcc"
# What only some tests need: a test whose program can't be had is skipped and named.
peers="/usr/bin/docker docker.io
umoci umoci
podman podman
buildah buildah
htpasswd apache2-utils
openssl openssl
ssh-agent openssh-client
sshd openssh-server
qemu-aarch64-static qemu-user-static
zstd zstd
bzip2 bzip2
xz xz-utils
newuidmap uidmap
runc runc
pasta passt
strace strace
mkfs.xfs xfsprogs
nginx nginx-light
/usr/share/doc/python3-venv python3-venv
setcap libcap2-bin
setfacl acl
rpmbuild rpm
db5.3_load db5.3-util"
static="musl-gcc musl-tools"

have() { [[ $1 == /* ]] && [[ -e $1 ]] || PATH=$PATH:/usr/sbin:/sbin command -v "$1" > /dev/null; }

missing() { # reads lines as above, writes the packages whose program isn't there
    while read -r program package; do
        if [[ $package == busybox-static ]]; then
            # The plain busybox package has the same program, linked against libc.
            dpkg -s busybox-static > /dev/null 2>&1 || echo "$package"
        else
            have "$program" || echo "$package"
        fi
    done
}

as_root() { if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo "$@"; fi; }
updated=
install() {
    if [[ -z $updated ]]; then
        as_root apt-get update -qq
        updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" > /dev/null
}

# Has the kernel run programs for arm64, in sandboxes too: the flag F keeps the emulator open. Until the next start of the machine.
emulate() {
    local handlers=/proc/sys/fs/binfmt_misc
    [[ $(uname -m) == x86_64 ]] && have qemu-aarch64-static || return 0
    [[ -e $handlers/register ]] || as_root mount -t binfmt_misc binfmt_misc $handlers 2> /dev/null \
        || { echo "could not mount binfmt_misc: tests of foreign platforms are skipped"; return 0; }
    [[ -e $handlers/qemu-aarch64 ]] || as_root sh -c "cat /usr/lib/binfmt.d/qemu-aarch64.conf > $handlers/register" \
        || echo "could not register qemu-aarch64: tests of foreign platforms are skipped"
}

# Two people without any rights: `kiln-subids` has 65536 ids of its own besides the one of each person, `kiln-plain` has not.
people() {
    # useradd gives ids that nobody else has to whoever it makes, but only when these files are there.
    as_root touch /etc/subuid /etc/subgid
    local name count file
    for name in kiln-subids kiln-plain; do
        [[ $name == kiln-subids ]] && count=65536 || count=0
        id "$name" > /dev/null 2>&1 || as_root useradd --no-create-home --home-dir /nonexistent --shell /bin/sh \
            -K SUB_UID_COUNT=$count -K SUB_GID_COUNT=$count "$name" \
            || { echo "could not make the user $name: tests that need it are skipped"; continue; }
        for file in /etc/subuid /etc/subgid; do
            [[ $(awk -F: -v name="$name" '$1 == name { sum += $3 } END { print sum + 0 }' "$file") == "$count" ]] \
                || echo "$name should have $count ids in $file: tests that need it are skipped"
        done
    done
}

needed=$(missing <<< "$demo")
optional=
case ${1:?demo, test, bench, static or fuzz} in
    demo) ;;
    test | bench) optional=$(missing <<< "$peers") ;;
    static) needed=$(missing <<< "$static") ;;
    fuzz) needed=$(missing <<< "g++ g++") ;;
esac
if [[ -n $needed ]]; then
    echo "installing" $needed
    # shellcheck disable=SC2086
    install $needed
fi
for package in $optional; do
    if [[ $package == openssh-server && -d /run/systemd/system ]]; then
        echo "not installing $package, which would let people into this machine: tests that need it are skipped"
        continue
    fi
    echo "installing $package"
    install "$package" || echo "could not install $package: tests that need it are skipped"
    # The tests start their own; nobody asked for a web server on port 80.
    if [[ $package == nginx-light && -d /run/systemd/system ]]; then
        as_root systemctl disable --quiet --now nginx || true
    fi
done
if [[ $1 == test ]]; then
    emulate
    people
    python3 "$(dirname "$0")/bucket.py" install || echo "could not install an S3 server: tests that need it are skipped"
fi
if [[ $1 == fuzz ]] && ! have cargo-fuzz; then
    cargo install --locked cargo-fuzz
fi
