#!/usr/bin/env bash
# Linux 6.14 and later (seen: 6.18): one write to cgroup.kill also kills what is born into that
# control group at any later time by clone3 with CLONE_INTO_CGROUP.
#
# Most people expect of cgroup.kill (cgroups: "kills all processes in the cgroup and its descendants",
# forks under way included) that it is over when it is over: the group is empty, and can be used again.
# Seen: a child that a process of another group has the kernel put into it at birth dies of SIGKILL
# before its first instruction, however long after. A child that moves itself there through
# cgroup.procs lives. So whoever reuses a group for one command after another has to make a new one
# after each kill.
#
# Exits 1 if that changes. Needs root, gcc, and a cgroup2 file system; leaves nothing behind.
set -euo pipefail
dir=$(mktemp -d)
group=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)/finding-$$
trap 'rm -rf "$dir"; rmdir "$group" 2>/dev/null || true' EXIT
cat >"$dir/born.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char path[4096];

static const char *below(const char *group, const char *file) {
    snprintf(path, sizeof path, "%s/%s", group, file);
    return path;
}

static void put(const char *file, const char *text) {
    int f = open(file, O_WRONLY);
    if (f < 0 || write(f, text, strlen(text)) < 0) { perror(file); _exit(9); }
    close(f);
}

static void tell(const char *what, long pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) printf("%s: signal %d\n", what, WTERMSIG(status));
    else printf("%s: exit %d\n", what, WEXITSTATUS(status));
}

static void both(const char *when, const char *group) {
    char what[100];
    int dir = open(group, O_RDONLY | O_DIRECTORY);
    struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = dir};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) _exit(7);
    snprintf(what, sizeof what, "%s, born into it", when);
    tell(what, pid);
    pid = fork();
    if (pid == 0) { put(below(group, "cgroup.procs"), "0"); _exit(7); }
    snprintf(what, sizeof what, "%s, moved into it", when);
    tell(what, pid);
    close(dir);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IONBF, 0);
    both("new group", argv[1]);
    put(below(argv[1], "cgroup.kill"), "1");
    sleep(1);
    both("killed a second ago, when empty", argv[1]);
    return argc != 2;
}
C
gcc -o "$dir/born" "$dir/born.c"
mkdir "$group"
uname -sr
said=$("$dir/born" "$group")
echo "$said"
[ "$said" = "new group, born into it: exit 7
new group, moved into it: exit 7
killed a second ago, when empty, born into it: signal 9
killed a second ago, when empty, moved into it: exit 7" ]
