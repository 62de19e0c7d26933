/* The call ring: how a client's calls reach one worker, and every constant of it that C and Python share.
 *
 * This file is the specification; `tools/generate_layout.py` turns its `#define`s into constants of `shmwasm/core/layout.py`.
 *
 * A ring is one segment, shared by one client and one worker, mapped into the memory of each one's core and into no guest's. The
 * client's calls take its slots in turn, and the worker runs them in that order. All numbers are little-endian.
 *
 *   offset                  size                what
 *   0                       RING_FIRST_SLOT     header
 *   RING_FIRST_SLOT         slot_size * SLOTS   the slots
 *   RING_BATCHES            RING_BATCH_SIZE *   buffers for batches: the arguments of many calls as columns of cells, and their
 *                           BATCH_BUFFERS       results
 *
 * Header; a line of 64 bytes for each word that one side writes while the other one polls:
 *   offset  size  field       meaning
 *   0       8     magic       RING_MAGIC
 *   8       4     version     RING_VERSION
 *   12      4     slot_size   bytes of a slot, a multiple of 64
 *   64      4     submitted   how many calls the client has submitted; the next one takes the slot `submitted % RING_SLOTS`
 *   68      4     patience    how often the client looks for the end of a call before it does without looking
 *   72      4     misses      how many calls in a row that was not often enough for
 *   76      4     closing     the client takes no more calls but asynchronous ones; written and read by the client
 *   80      4     bell_call   the call whose caller may sleep at `end_bell`, until it was collected; likewise
 *   128     4     taken       how many calls the worker has taken; written by the worker
 *   192     4     parked      the worker sleeps, or is about to: whoever submits rings the doorbell (atomic)
 *   256     4     notify      the client's receiver sleeps, or is about to, and wants to be woken at the end of an asynchronous
 *                             call (atomic)
 *   320     4     attention   there is a message beside the ring: the worker reads it before its next call (atomic)
 *   324     4     spin        how often the worker looks at the next slot before it parks; written by the client
 *   384     64    bell        where the worker sleeps: a semaphore of the C library's, as `sem_init` makes it
 *   448     64    end_bell    where the client sleeps whose slot says RING_BELL; another such semaphore
 *
 * Slot:
 *   offset  size  field       meaning
 *   0       4     state       see below (atomic; also the word that a waiting client sleeps on)
 *   4       4     waiting     the client sleeps, or is about to: RING_FUTEX on `state`, or RING_BELL on `end_bell` (atomic)
 *   8       4     sequence    the call's number: `submitted` before it was submitted
 *   12      4     export      what to call: its place among the exported functions
 *   16      4     flags       CALL_ASYNCHRONOUS, CALL_STOPPABLE, both or 0 (atomic)
 *   20      4     status      how it ended: CALL_RETURNED and so on
 *   24      4     count       0 for a single call; otherwise the calls of a batch
 *   28      4     progress    how many calls of a batch have returned (atomic, of one that is stoppable)
 *   32      4     arguments   of a batch: where its columns of arguments start, in bytes from the ring's first
 *   36      4     results     likewise
 *   40      8     when        the client's clock at the submission, in nanoseconds
 *   48      4     cells_out   how many cells are results
 *   52      4     stop        the worker begins no more calls of the batch, if it is stoppable (atomic)
 *   64      8*n   cells       arguments, then results in their place: each the bits of one number
 *
 * States of a slot, and who moves it on:
 *
 *   EMPTY --client--> SUBMITTED --worker--> RUNNING --worker--> ENDED --client--> EMPTY
 *                     SUBMITTED --client--> CANCELLED --worker--> ENDED
 *                                           RUNNING --client--> INTERRUPTING --worker--> ENDED
 *
 * Where both may move a state on, each does so by compare-and-swap, so that one of them wins and the other one knows. A process
 * that dies leaves its last state behind: RUNNING and INTERRUPTING was in flight, SUBMITTED and CANCELLED never began, and what is
 * ENDED has results.
 */
#ifndef SHMWASM_RING_H
#define SHMWASM_RING_H

#define RING_MAGIC 0x314c4c4143534d53 /* the ASCII characters SMSCALL1 */
#define RING_VERSION 3
#define RING_SIZE 1638400
#define RING_SLOTS 64
#define RING_FIRST_SLOT 4096
#define RING_SLOT_HEADER 64
#define RING_MAXIMUM_CELLS 1000 /* as many parameters, or results, as WebAssembly allows a function */
#define RING_WORKER_BELL 384
#define RING_END_BELL 448
#define RING_BATCHES 589824
#define RING_BATCH_SIZE 524288
#define RING_BATCH_BUFFERS 2

#define CALL_EMPTY 0
#define CALL_SUBMITTED 1
#define CALL_RUNNING 2
#define CALL_INTERRUPTING 3
#define CALL_CANCELLED 4
#define CALL_ENDED 5

#define CALL_ASYNCHRONOUS 1 /* nobody waits for this very call: the receiver collects it */
#define CALL_STOPPABLE 2    /* a batch of which one call can be ended early, and no other by mistake */

/* How a client sleeps until its call has ended. */
#define RING_FUTEX 1
#define RING_BELL 2 /* one thread at a time may: the bell does not say whose call it is */

/* How a call ended. */
#define CALL_RETURNED 0
#define CALL_TRAPPED 1
#define CALL_OVERDUE 2   /* interrupted */
#define CALL_WITHDRAWN 3 /* cancelled before it began */

/* What submitting and waiting answer. RING_DOORBELL may be added: the worker is parked and must be woken; and RING_AT_BELL to that:
 * the caller has dozed (see `ring_doze`), and may sleep at `end_bell` without looking again. */
#define RING_DONE 0
#define RING_PENDING 1
#define RING_FULL 2
#define RING_FAILED 3    /* done, and the status tells how it ended */
#define RING_LOST 4      /* the slot holds another call: this one was collected; or there is no ring any more */
#define RING_CLOSING 5   /* the client takes no more calls: nothing was submitted */
#define RING_DOORBELL 16
#define RING_AT_BELL 32

/* Why the worker's code returns to its host, where other answers are the address of a slot to run. */
#define RING_PARK 0
#define RING_ATTENTION 1

/* A client whose calls take longer than it is patient for, so many times in a row, looks only a moment for the end of the next ones,
 * and is patient with one in so many, to see whether that is still so. */
#define RING_MISSES 4
#define RING_MOMENT 16 /* the part of its patience that this is */
#define RING_PROBE 32

/* A request: what the client's host and its core pass each other about one call, in the core's own memory.
 *   offset  size  field       meaning
 *   0       4     sequence    the call's number; the core's answer to a submission
 *   4       4     export      as in the slot, like flags, count, arguments, results and when
 *   8       4     flags
 *   12      4     cells_in    how many cells are arguments
 *   16      4     cells_out   how many are results
 *   20      4     status      as in the slot, once the call has ended
 *   24      4     count
 *   28      4     progress
 *   32      4     arguments
 *   36      4     results
 *   40      8     when
 *   48      4     ring        where the ring is, or 0 once there is none any more
 *   64      16    host        the host's: it calls the core with this as the array of arguments, so that it fills in one go
 *                             whatever differs from call to call
 *   80      8*n   cells       arguments, and in their place results */
#define REQUEST_HOST 64
#define REQUEST_CELLS 80

#endif
