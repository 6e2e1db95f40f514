"""A job of several ranks: rounds of allreduce over arrays of many sizes, every element of every result compared with what it must be."""

import array
import os
import sys
import time

from mpi4py import MPI

SIZES = (1, 100, 8000, 3, 40000, 1000)

world = MPI.COMM_WORLD
rank, ranks = world.rank, world.size
rounds, gate = int(sys.argv[1]), sys.argv[2]


def numbers(factor, first, count):
    """factor * first, factor * (first + 1), ..."""
    return array.array("q", range(factor * first, factor * (first + count), factor))


def allreduce(number):
    count = SIZES[number % len(SIZES)]
    mine, result = numbers(rank + 1, number, count), array.array("q", bytes(8 * count))
    world.Allreduce([mine, MPI.INT64_T], [result, MPI.INT64_T])
    expected = numbers(ranks * (ranks + 1) // 2, number, count)
    if result != expected:
        at = next(index for index in range(count) if result[index] != expected[index])
        print(f"rank {rank} round {number}: element {at} is {result[at]} and not {expected[at]}", flush=True)
        world.Abort(1)


# Whoever talks to whom later is connected by this.
world.Alltoall([array.array("q", range(ranks)), MPI.INT64_T], [array.array("q", bytes(8 * ranks)), MPI.INT64_T])
for number in range(len(SIZES)):
    allreduce(number)
while rank == 0 and gate != "none" and not os.path.exists(gate):
    time.sleep(0.01)
for number in range(rounds):
    allreduce(number)
world.Barrier()
if rank == 0:
    print(f"{rounds} rounds of allreduce on {ranks} ranks: every element is right", flush=True)
