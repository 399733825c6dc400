// Runs a kernel's threads on one CPU core and looks at each of their accesses to memory.
//
// A thread of the GPU is a fibre here: it runs until it waits at a barrier or is done. The kernels are compiled with
// -fsanitize=thread, whose calls at each access come here instead of to its own library, and -fsanitize=undefined,
// whose reports do. Nothing in this file is compiled with either.
#include <setjmp.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "cuda_host.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

extern "C" {
CuThread cu_thread;

// An array as hostcompile.py passes it: `length` bytes may be accessed at each multiple of `period`, as many as fit
// below `end`. `known` has a byte for each of the array's: whether it was ever written; null: all were.
struct CuArray {
    uintptr_t begin, end, period, length;
    uint8_t* known;
    int read_only;
};
}

namespace {

constexpr size_t STACK = 64 << 10, MARGIN = 4096;  // bytes; what lies so near to shared memory was meant for it
constexpr int MOST_THREADS = 1024, MOST_REPORTS = 50, WARP = 32;

// ---- reports

std::vector<std::string> reports;
bool aborting, live;
int current = -1;  // fibre
[[noreturn]] void leave_fibre_for_good();

void report(const char* kind, int size = 0, const char* more = "") {
    if (reports.size() >= MOST_REPORTS) return;
    char text[512];
    const uint3 t = cu_thread.threadIdx, b = cu_thread.blockIdx;
    const char* form = size ? "%s of %d bytes, block (%u, %u, %u), thread (%u, %u, %u) %s"
                            : "%s%.0d block (%u, %u, %u), thread (%u, %u, %u) %s";
    snprintf(text, sizeof text, form, kind, size, b.x, b.y, b.z, t.x, t.y, t.z, more);
    reports.push_back(text);
}

[[noreturn]] void fail(const char* kind, int size = 0, const char* more = "") {
    report(kind, size, more);
    leave_fibre_for_good();
}

// ---- shadow memory: who read and wrote each word last, to tell races

struct Word {
    int writer, writer_epoch, reader, reader_epoch, reader2, reader2_epoch;  // threads from 1, 0: nobody yet
    bool atomic;
};

struct Region {  // overlapping arrays are one
    uintptr_t begin, end;
    Word* words;
};

std::vector<CuArray> arrays;
std::vector<Region> regions;
Region shared_region;
std::vector<uint8_t> shared_known;
unsigned char* shared_memory;
long shared_size, turn, accesses;  // the block that runs is turns[turn]
long bytes_read[2];                // of the last launch: from global, from shared memory
std::vector<long> turns;
int threads_of_block, epoch;
bool checked;
double deadline;
int thread_number();  // of the running fibre

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

// Mapped, not allocated: pages that nobody touches cost nothing, however large the arrays are.
Word* make_words(uintptr_t bytes) {
    const size_t size = (bytes / 4 + 2) * sizeof(Word);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return static_cast<Word*>(memory);
}

void free_words(Region& region) {
    if (region.words) munmap(region.words, ((region.end - region.begin) / 4 + 2) * sizeof(Word));
    region.words = nullptr;
}

void make_regions() {
    std::vector<Region> sorted;
    for (const CuArray& array : arrays)
        if (array.end > array.begin) sorted.push_back({array.begin & ~uintptr_t(3), array.end, nullptr});
    std::sort(sorted.begin(), sorted.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
    regions.clear();
    for (const Region& region : sorted) {
        if (!regions.empty() && region.begin < regions.back().end)
            regions.back().end = std::max(regions.back().end, region.end);
        else
            regions.push_back(region);
    }
    for (Region& region : regions) region.words = make_words(region.end - region.begin);
}

// Whether two accesses are ordered: in one block with a barrier between them, or by one thread.
bool ordered(int thread, int its_epoch, int me) {
    return !thread || thread == me || ((thread - 1) / threads_of_block == turn && its_epoch != epoch);
}

void look_for_race(Region& region, uintptr_t address, int size, bool write, bool atomic, bool is_shared) {
    const int self = int(turn * threads_of_block) + thread_number() + 1;
    for (uintptr_t place = address & ~uintptr_t(3); place < address + size; place += 4) {
        Word& word = region.words[(place - region.begin) / 4];
        int other = 0;
        const char* kind = "";
        if (!ordered(word.writer, word.writer_epoch, self) && !(atomic && word.atomic)) {
            other = word.writer;
            kind = write ? "RACE-WRITE-WRITE" : "RACE-READ-AFTER-WRITE";
        } else if (write && !atomic && !ordered(word.reader, word.reader_epoch, self)) {
            other = word.reader;
            kind = "RACE-WRITE-AFTER-READ";
        } else if (write && !atomic && !ordered(word.reader2, word.reader2_epoch, self)) {
            other = word.reader2;
            kind = "RACE-WRITE-AFTER-READ";
        }
        if (other) {
            char more[160];
            snprintf(more, sizeof more, "in %s memory, with thread %d of block %ld", is_shared ? "shared" : "global",
                     (other - 1) % threads_of_block, turns[(other - 1) / threads_of_block]);
            fail(kind, size, more);
        }
        if (write) {
            word.writer = self;
            word.writer_epoch = epoch;
            word.atomic = atomic;
        } else if (word.reader != self) {  // the last two readers are enough: a third was ordered, or will be seen
            word.reader2 = word.reader;
            word.reader2_epoch = word.reader_epoch;
            word.reader = self;
            word.reader_epoch = epoch;
        } else {
            word.reader_epoch = epoch;
        }
    }
}

bool holds(const CuArray& array, uintptr_t address, int size) {
    return address >= array.begin && address + size <= array.end &&
           (address - array.begin) % array.period + size <= array.length;
}

void complain_out_of_bounds(uintptr_t address, int size, bool write) {
    char more[160];
    long nearest = 0;
    size_t number = 0;
    for (size_t i = 0; i < arrays.size(); i++) {
        const long off = address < arrays[i].begin ? long(address - arrays[i].begin)
                                                   : std::max(long(address + size - arrays[i].end), 0l);
        if (!i || labs(off) < labs(nearest)) nearest = off, number = i;
    }
    const char* where = nearest < 0 ? "before" : nearest > 0 ? "past" : "between the images of";
    snprintf(more, sizeof more, "%ld bytes %s pointer argument %zu", labs(nearest), where, number);
    fail(write ? "OUT-OF-BOUNDS-WRITE" : "OUT-OF-BOUNDS-READ", size, more);
}

unsigned char* stacks;

void access(void* pointer, int size, bool write, bool atomic = false, int alignment = 0) {
    if (!live) return;
    if (!(++accesses & 0xfffff) && now() > deadline) fail("TIMEOUT");
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address - reinterpret_cast<uintptr_t>(stacks) < STACK * MOST_THREADS) return;  // a thread's own
    if (address - reinterpret_cast<uintptr_t>(&cu_thread) < sizeof cu_thread) return;
    const uintptr_t in_shared = address - reinterpret_cast<uintptr_t>(shared_memory);
    const bool is_shared = in_shared + MARGIN < uintptr_t(shared_size) + 2 * MARGIN;
    if (address % (alignment ? alignment : size)) fail("MISALIGNED", size);
    if (!write) bytes_read[is_shared] += size;
    if (is_shared) {
        if (in_shared >= uintptr_t(shared_size) || in_shared + size > uintptr_t(shared_size))
            fail("OUT-OF-BOUNDS in shared memory", size);
        for (int i = 0; i < size; i++) {
            if (!write && !shared_known[in_shared + i]) fail("UNINITIALISED-SHARED-READ", size);
            shared_known[in_shared + i] = 1;
        }
        look_for_race(shared_region, address, size, write, atomic, true);
        return;
    }
    CuArray *found = nullptr, *constant = nullptr;
    for (CuArray& array : arrays) {
        if (!holds(array, address, size)) continue;
        (write && array.read_only ? constant : found) = &array;
        if (found) break;
    }
    if (!found && constant) fail("WRITE-TO-CONST", size);
    if (!found) {
        complain_out_of_bounds(address, size, write);
        return;
    }
    if (found->known) {
        uint8_t* known = found->known + (address - found->begin);
        for (int i = 0; i < size; i++) {
            if (!write && !known[i]) fail("UNINITIALISED-GLOBAL-READ", size);
            known[i] = 1;
        }
    }
    for (Region& region : regions)
        if (address >= region.begin && address < region.end) {
            look_for_race(region, address, size, write, atomic, false);
            return;
        }
}

// ---- fibres

enum State { FREE, RUNS, AT_BARRIER, AT_WARP_BARRIER };
struct Fibre {
    jmp_buf place;
    ucontext_t context;  // to start on a stack of its own; later switches are jumps, which cost no system call
    bool started = false;
    int thread = -1, line = 0;
    State state = FREE;
};
Fibre fibres[MOST_THREADS];
int fibre_count, next_thread, done_count;
std::vector<int> free_fibres, at_barrier, order;
std::deque<int> ready;
jmp_buf scheduler;
void (*kernel)(void**);
void** kernel_arguments;
struct Warp {
    std::vector<int> waiting;
    int alive, line;
    uint32_t took_part;  // lanes of the last warp operation
    uint32_t values[WARP];
};
Warp warps[MOST_THREADS / WARP];
std::mt19937 generator;
int order_kind;

int thread_number() { return fibres[current].thread; }

void become(int thread) {
    const uint3 size = cu_thread.blockDim;
    cu_thread.threadIdx = {thread % size.x, thread / size.x % size.y, thread / (size.x * size.y)};
    cu_thread.lane = thread % WARP;
}

void to_scheduler() {
    if (!_setjmp(fibres[current].place)) _longjmp(scheduler, 1);
}

[[noreturn]] void leave_fibre_for_good() {
    aborting = true;
    to_scheduler();
    abort();
}

void release(Warp& warp) {
    warp.took_part = 0;
    for (int fibre : warp.waiting) {
        ready.push_back(fibre);
        warp.took_part |= 1u << fibres[fibre].thread % WARP;
    }
    warp.waiting.clear();
}

// What a fibre does: one thread after the other, as long as there are any.
void fibre_main() {
    for (;;) {
        while (next_thread < threads_of_block && !aborting) {
            Fibre& fibre = fibres[current];
            fibre.thread = order[next_thread++];
            fibre.state = RUNS;
            become(fibre.thread);
            kernel(kernel_arguments);
            done_count++;
            fibre.state = FREE;
            Warp& warp = warps[fibre.thread / WARP];
            if (--warp.alive && int(warp.waiting.size()) == warp.alive) release(warp);
        }
        free_fibres.push_back(current);
        to_scheduler();
    }
}

__attribute__((noinline)) void resume(int number) {
    current = number;
    Fibre& fibre = fibres[number];
    if (_setjmp(scheduler)) return;
    if (!fibre.started) {
        fibre.started = true;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = stacks + STACK * number;
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, fibre_main, 0);
        setcontext(&fibre.context);
    }
    if (fibre.state != FREE) become(fibre.thread);
    _longjmp(fibre.place, 1);
}

// Everybody waits, or is done: let them pass the barrier, if it is one and the same for all.
void pass_barrier() {
    for (Warp& warp : warps)
        if (!warp.waiting.empty()) {
            report("WARP-DEADLOCK: some lanes wait in a warp operation that others never reach");
            aborting = true;
            return;
        }
    if (checked && done_count) {
        report("BARRIER-DIVERGENCE: threads ended before a barrier that others wait at");
        aborting = true;
    }
    for (int number : at_barrier)
        if (checked && fibres[number].line != fibres[at_barrier[0]].line) {
            report("BARRIER-DIVERGENCE: threads wait at different barriers");
            aborting = true;
            break;
        }
    if (aborting) return;
    epoch++;
    std::sort(at_barrier.begin(), at_barrier.end(),
              [](int a, int b) { return fibres[a].thread < fibres[b].thread; });
    if (order_kind == 1) std::reverse(at_barrier.begin(), at_barrier.end());
    if (order_kind == 2) std::shuffle(at_barrier.begin(), at_barrier.end(), generator);
    ready.assign(at_barrier.begin(), at_barrier.end());
    at_barrier.clear();
}

void run_block() {
    next_thread = done_count = 0;
    epoch = 1;
    ready.clear();
    at_barrier.clear();
    for (int i = 0; i < MOST_THREADS / WARP; i++)
        warps[i] = {{}, std::max(0, std::min(WARP, threads_of_block - WARP * i)), 0, 0, {}};
    memset(shared_memory, 0xff, shared_size);
    std::fill(shared_known.begin(), shared_known.end(), 0);
    if (checked) memset(shared_region.words, 0, (shared_size / 4 + 2) * sizeof(Word));
    if (order_kind == 2) std::shuffle(order.begin(), order.end(), generator);
    while (!aborting) {
        if (!ready.empty()) {
            const int number = ready.front();
            ready.pop_front();
            resume(number);
        } else if (next_thread < threads_of_block) {
            int number = fibre_count;
            if (free_fibres.empty()) {
                fibre_count++;
            } else {
                number = free_fibres.back();
                free_fibres.pop_back();
            }
            resume(number);
        } else if (done_count == threads_of_block) {
            return;
        } else {
            pass_barrier();
        }
    }
    for (int i = 0; i < fibre_count; i++) fibres[i].started = false, fibres[i].state = FREE;  // stacks are abandoned
    free_fibres.clear();
    fibre_count = 0;
}

}  // namespace

// ---- what kernels call

extern "C" {

void cu_barrier(int line) {
    Fibre& fibre = fibres[current];
    fibre.state = AT_BARRIER;
    fibre.line = line;
    at_barrier.push_back(current);
    to_scheduler();
}

void cu_warp_barrier(unsigned, int line) {
    Fibre& fibre = fibres[current];
    Warp& warp = warps[fibre.thread / WARP];
    fibre.state = AT_WARP_BARRIER;
    if (!warp.waiting.empty() && warp.line != line) fail("WARP-DIVERGENCE: lanes wait in different warp operations");
    warp.line = line;
    warp.waiting.push_back(current);
    if (int(warp.waiting.size()) == warp.alive) release(warp);
    to_scheduler();
}

uint32_t cu_shuffle(uint32_t value, int source, unsigned mask, int line) {
    Warp& warp = warps[fibres[current].thread / WARP];
    if (mask != 0xffffffffu || source < 0 || source >= WARP) fail("BAD-SHUFFLE");
    warp.values[fibres[current].thread % WARP] = value;
    cu_warp_barrier(mask, line);
    if (!(warp.took_part >> source & 1)) fail("BAD-SHUFFLE: from a lane that takes no part");
    const uint32_t result = warp.values[source];
    cu_warp_barrier(mask, -line);
    return result;
}

void cu_atomic(void* place, int size, bool is_float) {
    if (is_float && checked) fail("FLOAT-ATOMIC: the order of its sums is not fixed", size);
    if (checked) access(place, size, true, true);
}

#define ACCESSES(n)                                                             \
    void __tsan_read##n(void* p) { access(p, n, false); }                       \
    void __tsan_write##n(void* p) { access(p, n, true); }                       \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false); }             \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true); }             \
    void __tsan_volatile_read##n(void* p) { access(p, n, false); }              \
    void __tsan_volatile_write##n(void* p) { access(p, n, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, long n) {  // copies of a struct: 16 bytes are one instruction of a GPU
    for (long i = 0; i < n; i += 4) access(static_cast<char*>(p) + i, 4, false, false, i ? 4 : n % 16 ? 4 : 16);
}
void __tsan_write_range(void* p, long n) {
    for (long i = 0; i < n; i += 4) access(static_cast<char*>(p) + i, 4, true, false, i ? 4 : n % 16 ? 4 : 16);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
    __tsan_read_range(const_cast<void*>(from), long(n));
    __tsan_write_range(to, long(n));
    return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
    __tsan_write_range(to, long(n));
    return memset(to, value, n);
}

static void undefined(const char* kind, void* data) {
    struct Place {
        const char* file;
        uint32_t line, column;
    };
    const Place& place = *static_cast<Place*>(data);
    char more[200];
    snprintf(more, sizeof more, "at %s:%u", place.file, place.line);
    fail(kind, 0, more);
}
#define UNDEFINED(name, kind) \
    void __ubsan_handle_##name(void* data, void*, void*) { undefined(kind, data); }
UNDEFINED(add_overflow, "INTEGER-OVERFLOW")
UNDEFINED(sub_overflow, "INTEGER-OVERFLOW")
UNDEFINED(mul_overflow, "INTEGER-OVERFLOW")
UNDEFINED(negate_overflow, "INTEGER-OVERFLOW")
UNDEFINED(divrem_overflow, "DIVISION-BY-ZERO")
UNDEFINED(shift_out_of_bounds, "SHIFT-OUT-OF-RANGE")
UNDEFINED(out_of_bounds, "INDEX-OUT-OF-BOUNDS")

// ---- what hostcompile.py calls

static std::vector<CuKernel*>& kernels() {
    static std::vector<CuKernel*> all;
    return all;
}
void cu_register(CuKernel* one) { kernels().push_back(one); }
int cu_count() { return int(kernels().size()); }
const char* cu_name(int i) { return kernels()[i]->name; }
const char* cu_signature(int i) { return kernels()[i]->signature; }
int cu_most_threads(int i) { return kernels()[i]->most_threads; }
const char* cu_report(int i) { return reports[i].c_str(); }
long cu_bytes_read(int shared) { return bytes_read[shared]; }

// Launch a kernel; returns the number of reports.
int cu_launch(int number, const unsigned* grid, const unsigned* block, long shared, void** arguments, int array_count,
              const CuArray* given, int order_, unsigned seed, int checked_, long most_blocks, double seconds) {
    if (!stacks)
        stacks = static_cast<unsigned char*>(mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    reports.clear();
    aborting = false;
    checked = checked_;
    order_kind = order_;
    generator.seed(seed);
    accesses = bytes_read[0] = bytes_read[1] = 0;
    deadline = now() + seconds;
    kernel = kernels()[number]->call;
    kernel_arguments = arguments;
    cu_thread.gridDim = {grid[0], grid[1], grid[2]};
    cu_thread.blockDim = {block[0], block[1], block[2]};
    threads_of_block = int(block[0] * block[1] * block[2]);
    std::vector<unsigned char> memory(shared + 2 * MARGIN + 64);
    shared_memory = memory.data() + MARGIN;
    shared_memory += -reinterpret_cast<uintptr_t>(shared_memory) & 63;
    shared_size = shared;
    cu_thread.shared = shared_memory;
    shared_known.assign(shared, 0);
    arrays.assign(given, given + array_count);
    regions.clear();
    shared_region = {reinterpret_cast<uintptr_t>(shared_memory), reinterpret_cast<uintptr_t>(shared_memory) + shared,
                     nullptr};
    if (checked) {
        make_regions();
        shared_region.words = make_words(shared);
    }
    order.resize(threads_of_block);
    for (int i = 0; i < threads_of_block; i++) order[i] = order_ == 1 ? threads_of_block - 1 - i : i;
    const long blocks = long(grid[0]) * grid[1] * grid[2], count = std::min(blocks, most_blocks);
    turns.resize(count);
    for (long i = 0; i < count; i++) turns[i] = order_ == 1 ? blocks - 1 - i : i;
    if (order_ == 2 && count == blocks) std::shuffle(turns.begin(), turns.end(), generator);
    live = checked;
    for (turn = 0; turn < count && !aborting; turn++) {
        const long block_number = turns[turn];
        cu_thread.blockIdx = {unsigned(block_number % grid[0]), unsigned(block_number / grid[0] % grid[1]),
                              unsigned(block_number / (long(grid[0]) * grid[1]))};
        run_block();
    }
    live = false;
    for (Region& region : regions) free_words(region);
    free_words(shared_region);
    return int(reports.size());
}
}
