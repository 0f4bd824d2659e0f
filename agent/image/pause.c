/* The process that holds a pod's namespaces: waits for signals, reaps orphans, leaves on SIGTERM or SIGINT.
   No libc. Built once, with the machine code kept in pause.py:
     gcc -Os -nostdlib -static -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -c pause.c
     objcopy -O binary -j .text pause.o pause.bin */
enum { RT_SIGPROCMASK = 14, WAIT4 = 61, RT_SIGTIMEDWAIT = 128, EXIT_GROUP = 231 };
enum { SIG_BLOCK = 0, SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, WNOHANG = 1, SET_BYTES = 8 };

static long call(long number, long a, long b, long c, long d)
{
	register long fourth __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall" : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
			 : "rcx", "r11", "memory");
	return result;
}

void _start(void)
{
	unsigned long every = ~0UL;
	long signal;

	call(RT_SIGPROCMASK, SIG_BLOCK, (long)&every, 0, SET_BYTES);
	for (;;) {
		signal = call(RT_SIGTIMEDWAIT, (long)&every, 0, 0, SET_BYTES);
		if (signal == SIGTERM || signal == SIGINT)
			call(EXIT_GROUP, 0, 0, 0, 0);
		if (signal == SIGCHLD)
			while (call(WAIT4, -1, 0, WNOHANG, 0) > 0)
				;
	}
}
