"""Wrong candidates of every kind, for the harness of `examples/tune/saxpy.py`: texts by their fault."""

from __future__ import annotations

from collections.abc import Iterator

HEADERS = "".join(
    f"#include <{name}.h>\n"
    for name in (
        "stdint", "stdio", "stdlib", "string", "unistd", "fcntl", "fenv", "sys/mman", "sys/socket", "signal", "pthread",
    )
)  # fmt: skip
BEGIN = "void saxpy(float a, const float *x, const float *y, float *z, int64_t n) {\n"
LOOP = "for (int64_t i = 0; i < n; ++i) z[i] = a * x[i] + y[i];\n"


def after(statement: str, before: str = "") -> str:
    return f"{HEADERS}{before}{BEGIN}{LOOP}{statement}\n}}\n"


def loop(end: str, value: str = "a * x[i] + y[i]", start: str = "0") -> str:
    return f"{HEADERS}{BEGIN}for (int64_t i = {start}; i < {end}; ++i) z[i] = {value};\n}}\n"


WRONG = {
    "syntax": f"{HEADERS}{BEGIN}{LOOP}",
    "prose": "Here is a faster version of the function:",
    "empty": "",
    "another name": after("").replace("saxpy", "axpy"),
    "hangs": after('for (;;) __asm__ volatile("");'),
    "crashes": after("*(volatile int *)0 = 1;"),
    "aborts": after("abort();"),
    "exits": after("_exit(0);"),
    "writes behind": after("z[n] = 0;"),
    "writes before": after("if (n) ((volatile float *)z)[-1] = 1;"),
    "reads behind": after("if (n) z[0] += 0 * ((volatile const float *)y)[n];"),
    "writes inputs": after("if (n) ((float *)x)[0] = 0;"),
    "only even sizes": loop("n / 2 * 2"),
    "only multiples of eight": loop("n / 8 * 8"),
    "only small sizes": f"{HEADERS}{BEGIN}if (n > 3000) return;\n{LOOP}}}\n",
    "not the timed size": f"{HEADERS}{BEGIN}if (n == 20000) return;\n{LOOP}}}\n",
    "not NaN": loop("n", "x[i] == x[i] ? a * x[i] + y[i] : 0"),
    "not precise": loop("n", "(a * x[i] + y[i]) * 1.0001f"),
    "keeps memory": after("volatile char *p = malloc(24); p[0] = 1;"),
    "keeps pages": after("volatile char *p = mmap(0, 8192, 3, 34, -1, 0); p[0] = 1;"),
    "takes too much": after("volatile char *p = malloc(8L << 30); p[0] = 1; free((void *)p);"),
    "uses freed memory": after("volatile char *p = malloc(9); free((void *)p); p[0] = 1;"),
    "stack overflow": after("volatile int64_t k = n; volatile char b[4]; b[k & 7] = 1;"),
    "undefined": after("volatile int64_t big = INT64_MAX; big = big + n;"),
    "prints": after('printf("done");'),
    "writes": after('write(2, "x", 1);'),
    "forks": after("fork();"),
    "starts a program": after('system("true");'),
    "starts a thread": after(
        "pthread_t t; pthread_create(&t, 0, work, 0);", "static void *work(void *p) { return p; }\n"
    ),
    "signals": after("kill(getppid(), 0);"),
    "opens a socket": after("socket(2, 1, 0);"),
    "reads a file": after('open("/etc/hostname", 0);'),
    "embeds a file": after("", '__asm__(".section .rodata\\n.incbin \\"/etc/hostname\\"\\n.text");\n'),
    "includes a file": '#include "/etc/hostname"\n' + after(""),
    "runs at load": after("", "__attribute__((constructor)) static void begin(void) { fork(); }\n"),
    "runs as _init": after("", "void _init(void) {}\n"),
    "keeps state": after("calls++;", "static int calls;\n"),
    "knows the sanitizer": after("", "#ifndef __SANITIZE_ADDRESS__\n#endif\n"),
    "changes registers": after('__asm__ volatile("mov $1, %r12\\n\\tmov $2, %rbx");'),
    "changes rounding": after("fesetround(FE_DOWNWARD);"),
}


def generated() -> Iterator[str]:
    """Yields hundreds of wrong texts: mistakes of one place in the right function, over many constants."""
    for k in range(1, 41):
        yield loop(f"n - (n % {k + 1} != 0)")
        yield loop(f"n + {k}")
        yield loop("n", start=f"(n > {k}) - (n <= -1)")
        yield loop("n", f"a * x[i] + y[i] + (i == {k % 17} ? 1e-3f : 0)")
        yield loop("n", f"i % {k + 1} == {k % (k + 1)} ? a * x[i] - y[i] : a * x[i] + y[i]")
        yield (
            after(f"if (n > {k % 17}) z[n - 1 - {k % 17}] = z[0];")
            if k % 17
            else after("if (n) z[n - 1] = 7;")
        )
        yield f"{HEADERS}{BEGIN}if (n > {3000 + k}) return;\n{LOOP}}}\n"
        yield after(f"volatile char *p = malloc({16 + k}); p[0] = 1;")
