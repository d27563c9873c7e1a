/* Small deeds for which busybox has no applet, each named by the first argument. Compiled statically by the tests. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what) { perror(what); exit(1); }

/* A name that begins with @ is an abstract one. */
static socklen_t address(struct sockaddr_un *to, const char *name) {
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    strncpy(to->sun_path, name, sizeof to->sun_path - 1);
    if (name[0] == '@') to->sun_path[0] = 0;
    return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (name[0] != '@');
}

/* Hands the file, open for writing, to whoever listens. */
static int send_file(const char *name, const char *file) {
    int fd = open(file, O_RDWR);
    if (fd < 0) die(file);
    struct sockaddr_un to;
    socklen_t length = address(&to, name);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    for (int i = 0; connect(s, (struct sockaddr *)&to, length); i++) {
        if (i > 500) die("connect");
        usleep(10000);
    }
    char byte = 'x', room[CMSG_SPACE(sizeof fd)];
    struct iovec io = {&byte, 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    if (sendmsg(s, &m, 0) != 1) die("sendmsg");
    /* The other one has it. */
    return read(s, &byte, 1) == 1 ? 0 : 1;
}

/* Takes a file, waits for so many milliseconds, and writes into it. */
static int receive_file(const char *name, int wait) {
    struct sockaddr_un to;
    socklen_t length = address(&to, name);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(s, (struct sockaddr *)&to, length) || listen(s, 1)) die("listen");
    int c = accept(s, 0, 0);
    char byte, room[CMSG_SPACE(sizeof(int))];
    struct iovec io = {&byte, 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    if (recvmsg(c, &m, 0) != 1) die("recvmsg");
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    if (write(c, "k", 1) != 1) die("answer");
    usleep(wait * 1000);
    dprintf(1, "%s\n", pwrite(fd, "poisoned", 8, 0) == 8 ? "written" : strerror(errno));
    return 0;
}

static void *sleep_for_ever(void *unused) { for (;;) pause(); return unused; }

/* As many threads as can be had, up to n. */
static int threads(int n) {
    int made = 0;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (pthread_t t; made < n && !pthread_create(&t, &small, sleep_for_ever, 0); made++) {}
    printf("%d\n", made);
    return 0;
}

/* As many processes as can be had, up to n, each trying to have n again: a fork bomb with an end. */
static int forks(int n) {
    int made = 0;
    while (made < n) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (!pid) { setsid(); signal(SIGTERM, SIG_IGN); if (n < 64) pause(); for (;;) { if (fork() < 0) usleep(1000); } }
        made++;
    }
    printf("%d\n", made);
    return 0;
}

/* A child that is stopped under a tracer, which goes on. */
static int traced(void) {
    pid_t pid = fork();
    if (!pid) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); for (;;) pause(); }
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) die("trace");
    puts("stopped");
    fflush(stdout);
    for (;;) pause();
}

/* Blocks and ignores all that can be. */
static int deaf(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    for (int i = 1; i < 65; i++) signal(i, SIG_IGN);
    for (;;) pause();
}

/* Opens what it can. */
static int files(void) {
    int made = 0;
    while (open("/dev/null", O_RDONLY) >= 0) made++;
    printf("%d %s\n", made, strerror(errno));
    return 0;
}

/* Types into a terminal: the kernel must not be asked. */
static int type(void) {
    for (int fd = 0; fd < 3; fd++) {
        int a = ioctl(fd, TIOCSTI, "x") ? errno : 0;
        char two = 2;
        int b = ioctl(fd, TIOCLINUX, &two) ? errno : 0;
        /* The kernel looks at 32 bits of the number, so that more must not hide it. */
        int c = syscall(16, fd, 0x100005412UL, "x") ? errno : 0;
        printf("%d %d %d\n", a, b, c);
    }
    return 0;
}

int main(int argc, char **argv) {
    const char *deed = argc > 1 ? argv[1] : "";
    if (!strcmp(deed, "send") && argc == 4) return send_file(argv[2], argv[3]);
    if (!strcmp(deed, "receive") && argc == 4) return receive_file(argv[2], atoi(argv[3]));
    if (!strcmp(deed, "threads") && argc == 3) return threads(atoi(argv[2]));
    if (!strcmp(deed, "thread-storm") && argc == 3) { threads(atoi(argv[2])); for (;;) pause(); }
    if (!strcmp(deed, "forks") && argc == 3) return forks(atoi(argv[2]));
    if (!strcmp(deed, "traced")) return traced();
    if (!strcmp(deed, "deaf")) return deaf();
    if (!strcmp(deed, "files")) return files();
    if (!strcmp(deed, "type")) return type();
    return 2;
}
