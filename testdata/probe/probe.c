/* Asks the kernel everything, from inside of a sandbox, and prints one line an answer.

   A call is `open` when the kernel itself answers it, whatever it says, `EPERM` or `ENOSYS` when that is the answer. Arguments are
   -1 unless a table below has better ones: they are refused by the kernel before anything happens. Each is tried in a process of
   its own that is ended after ten seconds. With the argument `free` only the calls are tried, to tell what this kernel has. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define X32 0x40000000
enum { NATIVE, OLD };

static int *answer; /* shared with the children */

static long old_call(long n, const long *a) {
    long r;
    __asm__ volatile("push %%rbp\n mov %6, %%ebp\n int $0x80\n pop %%rbp"
                     : "=a"(r) : "a"(n), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "r"((int)a[5]), "D"(a[4])
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)r;
}

static long new_call(long n, const long *a) {
    long r;
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}

/* 0 for what the kernel answered itself. */
static int try_call(int entry, long n, const long *a) {
    /* A place of its own for each, for the child of a fork that was let through may answer late. */
    answer++;
    pid_t pid = fork();
    if (!pid) {
        if (n == (entry == OLD ? 29 : SYS_pause)) ualarm(50000, 0);
        if (n == SYS_landlock_restrict_self) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); /* else the kernel itself says EPERM */
        long r = entry == OLD ? old_call(n, a) : new_call(n, a);
        *answer = r < 0 && r > -4096 ? -r : 0;
        _exit(0);
    }
    /* A call that blocks is one that the kernel has taken; it may have blocked all signals, too. On a busy machine an answer takes
       its time. */
    for (int i = 0; waitpid(pid, 0, WNOHANG) == 0; i++) {
        if (i == 10000) { kill(pid, SIGKILL); waitpid(pid, 0, 0); break; }
        usleep(i < 20 ? 20 : 1000);
    }
    return *answer;
}

static const char *word(int e) { return e == EPERM ? "EPERM" : e == ENOSYS ? "ENOSYS" : "open"; }

struct special { int entry; long number, a[6]; };
static const struct special specials[] = {
    {NATIVE, SYS_socket, {AF_UNIX, -1, 0}}, {NATIVE, SYS_futex, {0, 1, 0}}, {NATIVE, SYS_clone, {0, 0, 0, 0, 0, 0}},
    {NATIVE, SYS_socketpair, {AF_UNIX, -1, 0, 0}},
    {NATIVE, SYS_sync, {0}}, {OLD, 359, {AF_UNIX, -1, 0}}, {OLD, 240, {0, 1, 0}}, {OLD, 422, {0, 1, 0}}, {OLD, 120, {0}},
    {NATIVE, SYS_modify_ldt, {0, 0, 0}}, {OLD, 123, {0, 0, 0}}, {OLD, 45, {0}}, {OLD, 117, {1, -1, 0, 0, 0, 0}}, {OLD, 34, {0}}, {OLD, 360, {AF_UNIX, -1, 0, 0}},
};

static void calls(const char *name, int entry, long base, long last) {
    for (long n = 0; n <= last; n++) {
        const long none[6] = {-1, -1, -1, -1, -1, -1};
        const long *a = none;
        for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
            if (specials[i].entry == entry && specials[i].number == n && base == 0) a = specials[i].a;
        printf("%s %ld %s\n", name, n, word(try_call(entry, base + n, a)));
    }
}

static void one(const char *what, const char *value, int entry, long n, long a, long b, long c) {
    long args[6] = {a, b, c, 0, 0, 0};
    int e = try_call(entry, n, args);
    printf("%s%s %s %s\n", entry == OLD ? "32-bit " : "", what, value, word(e));
}

static void arguments(void) {
    static const struct { const char *name; unsigned flag; } spaces[] = {
        {"NEWTIME", 0x80}, {"NEWNS", 0x20000}, {"NEWCGROUP", 0x2000000}, {"NEWUTS", 0x4000000}, {"NEWIPC", 0x8000000},
        {"NEWUSER", 0x10000000}, {"NEWPID", 0x20000000}, {"NEWNET", 0x40000000},
    };
    for (int entry = NATIVE; entry <= OLD; entry++) {
        for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
            one("clone", spaces[i].name, entry, entry == OLD ? 120 : SYS_clone, spaces[i].flag | SIGCHLD, 0, 0);
            one("unshare", spaces[i].name, entry, entry == OLD ? 310 : SYS_unshare, spaces[i].flag, 0, 0);
        }
        static const unsigned personas[] = {0, 1, 8, 0x20000, 0x20008, 0x40000, 0x400000, 0x800000, 0x1000000, 0x8000000, 0xfffffffe, 0xffffffff};
        for (size_t i = 0; i < sizeof personas / sizeof *personas; i++) {
            char value[16];
            sprintf(value, "%#x", personas[i]);
            one("personality", value, entry, entry == OLD ? 136 : SYS_personality, personas[i], 0, 0);
        }
        for (int family = 0; family <= 50; family++) {
            char value[16];
            sprintf(value, "%d", family);
            one("socket", value, entry, entry == OLD ? 359 : SYS_socket, family, -1, 0);
        }
        one("ioctl", "TIOCSTI", entry, entry == OLD ? 54 : SYS_ioctl, 0, 0x5412, 0);
        one("ioctl", "TIOCLINUX", entry, entry == OLD ? 54 : SYS_ioctl, 0, 0x541c, 0);
        one("ioctl", "TIOCGWINSZ", entry, entry == OLD ? 54 : SYS_ioctl, 0, 0x5413, 0);
    }
    one("ioctl", "TIOCSTI|1<<32", NATIVE, SYS_ioctl, 0, 0x100005412L, 0);
    one("socket", "AF_ALG|1<<32", NATIVE, SYS_socket, 0x100000026L, -1, 0);
    one("clone", "NEWUSER|1<<32", NATIVE, SYS_clone, 0x110000011L, 0, 0);
    /* The arguments of socketcall lie in memory, which a filter can't read. */
    int *words = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    words[0] = AF_ALG, words[1] = SOCK_SEQPACKET, words[2] = 0;
    one("socketcall", "AF_ALG", OLD, 102, 1, (long)words, 0);
}

static const char *names[] = {
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
};

/* A file of user 1, mode 0600. */
static int foreign(void) {
    unlink("/probe-file");
    int fd = open("/probe-file", O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || fchown(fd, 1, 1)) return -1;
    return fd;
}

/* What the right is for, done to nobody's harm: 0, or -1 and errno; 1 where there is no such deed. */
static int deed(int cap) {
    struct rlimit none = {0, 0}, some = {1, 1};
    struct ifreq lo = {.ifr_name = "lo"};
    struct timex time = {0};
    int one_flag = FS_IMMUTABLE_FL, fd;
    switch (cap) {
    case 0: return foreign() < 0 ? -1 : 0;
    case 1: return foreign() < 0 ? -1 : open("/probe-file", O_RDWR) < 0 ? -1 : 0;
    case 3: return foreign() < 0 ? -1 : chmod("/probe-file", 0644);
    case 4: {
        struct stat s;
        if (foreign() < 0 || chmod("/probe-file", 02755) || stat("/probe-file", &s)) return -1;
        errno = EPERM;
        return s.st_mode & 02000 ? 0 : -1;
    }
    case 5: {
        int ready[2];
        char byte;
        if (pipe(ready)) return -1;
        pid_t pid = fork();
        if (!pid) { if (setuid(1)) {} if (write(ready[1], "x", 1)) {} pause(); _exit(0); }
        if (read(ready[0], &byte, 1) != 1) return -1;
        return kill(pid, SIGKILL);
    }
    case 6: return setgid(5);
    case 7: return setuid(5);
    case 8: return prctl(PR_CAPBSET_DROP, 0, 0, 0, 0);
    case 9: return (fd = open("/probe-own", O_RDWR | O_CREAT, 0600)) < 0 ? -1 : ioctl(fd, FS_IOC_SETFLAGS, &one_flag);
    case 12: strcpy(lo.ifr_name, "nosuch0"); return ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &lo);
    case 13: return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) < 0 ? -1 : 0;
    case 14: setrlimit(RLIMIT_MEMLOCK, &none); return mlock((void *)((long)answer & -4096), 4096);
    case 18: return chroot("/");
    case 21: return sethostname("probe", 5);
    case 23: return setpriority(PRIO_PROCESS, 0, -1);
    case 24: setrlimit(RLIMIT_CORE, &none); return setrlimit(RLIMIT_CORE, &some);
    case 25: time.modes = ADJ_STATUS; return adjtimex(&time);
    case 26: return syscall(SYS_vhangup);
    case 27: return mknod("/probe-node", S_IFCHR | 0600, makedev(1, 3));
    case 28: return foreign() < 0 ? -1 : (fd = open("/probe-file", O_RDONLY)) < 0 ? -1 : fcntl(fd, F_SETLEASE, F_RDLCK);
    case 31: {
        unsigned value[5] = {0x2000000, 1 << 10, 0, 0, 0};
        return (fd = open("/probe-own", O_RDWR | O_CREAT, 0600)) < 0 ? -1 : fsetxattr(fd, "security.capability", value, 20, 0);
    }
    case 34: return syscall(SYS_syslog, 10, 0, 0);
    case 35: return timerfd_create(CLOCK_REALTIME_ALARM, 0) < 0 ? -1 : 0;
    default: return 1;
    }
}

static const char *name_of(int e) { return e == EPERM ? "EPERM" : e == EACCES ? "EACCES" : e == EINVAL ? "EINVAL" : strerror(e); }

static void capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    for (int cap = 0; cap <= 40; cap++) {
        unsigned bit = 1u << (cap & 31);
        *++answer = 2;
        pid_t pid = fork();
        if (!pid) {
            alarm(2);
            errno = 0;
            int r = deed(cap);
            *answer = r < 0 ? -errno : r;
            _exit(0);
        }
        waitpid(pid, 0, 0);
        unlink("/probe-file"), unlink("/probe-own"), unlink("/probe-node");
        printf("capability %d %s%s%s%s%s%s, %s\n", cap, names[cap], data[cap / 32].effective & bit ? " effective" : "",
               data[cap / 32].permitted & bit ? " permitted" : "", prctl(PR_CAPBSET_READ, cap, 0, 0, 0) > 0 ? " bounding" : "",
               data[cap / 32].inheritable & bit ? " inheritable" : "",
               prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) > 0 ? " ambient" : "",
               *answer == 1 ? "not tried" : *answer == 0 ? "done" : *answer < 0 ? name_of(-*answer) : "killed");
    }
}

/* Hidden is what isn't there, or is empty. */
static void path(const char *name) {
    struct stat s;
    char bytes[512];
    int fd, hidden = 1;
    if (!stat(name, &s)) {
        fd = open(name, O_RDONLY | O_NONBLOCK);
        if (fd >= 0) hidden = S_ISDIR(s.st_mode) ? syscall(SYS_getdents64, fd, bytes, sizeof bytes) <= 48 : read(fd, bytes, 1) != 1;
    }
    char below[256];
    snprintf(below, sizeof below, "%s%s", name, !stat(name, &s) && S_ISDIR(s.st_mode) ? "/probe" : "");
    fd = open(below, S_ISDIR(s.st_mode) ? O_WRONLY | O_CREAT : O_WRONLY, 0600);
    int refused = fd < 0;
    printf("path %s %s, %s\n", name, hidden ? "hidden" : "seen", refused ? "not written" : "written");
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IOFBF, 1 << 16);
    answer = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    /* Printed by the parent alone: children end without flushing. */
    calls("x86-64", NATIVE, 0, 466 + 20);
    calls("i386", OLD, 0, 466 + 20);
    fflush(stdout);
    if (argc > 1 && !strcmp(argv[1], "free")) return 0;
    calls("x32", NATIVE, X32, 600);
    arguments();
    capabilities();
    static const char *paths[] = {
        "/proc/acpi", "/proc/asound", "/proc/bus", "/proc/fs", "/proc/interrupts", "/proc/irq", "/proc/kcore", "/proc/keys",
        "/proc/kmsg", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sys", "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats",
        "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/cgroup", "/sys/fs/selinux", "/sys/kernel/debug", "/sys/kernel/security",
        "/sys/kernel/uevent_helper", "/sys/power/state", "/dev/kmsg", "/dev/mem", "/dev/sda", "/dev/kvm", "/dev/fuse", "/dev/loop-control",
        "/dev/net/tun",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) path(paths[i]);
    return fflush(stdout);
}
