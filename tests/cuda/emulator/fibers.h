/* fibers.h: what files of the emulator share: see fibers.cpp. */
#ifndef KR_TESTS_FIBERS_H
#define KR_TESTS_FIBERS_H

#define EMU_THREADS_MAX 1024u

void emu_yield();        /* other threads of the block run */
void emu_block_begins(); /* what hopper.cpp keeps of a block is forgotten */

#endif
