// A small pool of threads that hands out numbered tasks. It is ours so that no second OpenMP runtime enters the process.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lf {

// Kernels see the pool through this plain struct, so that nothing of the standard library is compiled into them.
struct Workers {
  int count;                                                      // threads that take part, the caller among them
  void (*run)(void* pool, int tasks, void (*body)(void* context, int task, int worker), void* context);
  void* (*scratch)(void* pool, int worker, size_t bytes);         // 64-byte aligned, kept between calls; slot `count` is the caller's
  void* pool;

  template <class F>
  void each(int tasks, F&& body) const {
    run(pool, tasks, [](void* f, int task, int worker) { (*static_cast<F*>(f))(task, worker); }, &body);
  }
};

class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool();  // never destroyed: its threads may outlive static destructors
    return *pool;
  }

  // Threads are started on first use and after a change of count. A task runs on exactly one worker; which one is
  // not fixed, so kernels give every task a result slot of its own and add up in task order. The caller works too, and
  // returns when all tasks are done: it never waits for a thread that has not woken up, as one may take long to on a
  // machine with other work.
  void run(int tasks, void (*body)(void*, int, int), void* context) {
    std::lock_guard<std::mutex> one_at_a_time(entry_);
    if (tasks <= 1 || count_ <= 1) {
      for (int i = 0; i < tasks; ++i) body(context, i, 0);
      return;
    }
    start();
    body_ = body;
    context_ = context;
    for (offset_ = 0; offset_ < tasks; offset_ += kMostTasks) {
      const uint64_t total = uint64_t(tasks - offset_ < kMostTasks ? tasks - offset_ : kMostTasks);
      done_.store(0, std::memory_order_relaxed);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        round_ = (round_ + 1) & kRoundMask;
        ticket_.store(round_ << 40 | total << 20, std::memory_order_release);
      }
      wake_.notify_all();
      drain(0);
      while (done_.load(std::memory_order_acquire) < total) pause();
    }
  }

  void set_count(int count) {
    std::lock_guard<std::mutex> one_at_a_time(entry_);
    if (count < 1) count = 1;
    if (count == count_) return;
    stop();
    count_ = count;
    scratch_.resize(size_t(count) + 1);
  }
  int count() const { return count_; }

  void* scratch(int worker, size_t bytes) {
    Block& block = scratch_[size_t(worker)];
    if (block.bytes < bytes) {
      std::free(block.raw);
      block.bytes = bytes + bytes / 4;
      block.raw = std::malloc(block.bytes + 64);
    }
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block.raw) + 63) & ~uintptr_t(63));
  }

  Workers workers() {
    return Workers{count_,
                   [](void* pool, int tasks, void (*body)(void*, int, int), void* context) {
                     static_cast<Pool*>(pool)->run(tasks, body, context);
                   },
                   [](void* pool, int worker, size_t bytes) { return static_cast<Pool*>(pool)->scratch(worker, bytes); },
                   this};
  }

  // After fork the child has no threads; forget the parent's so that the next call starts its own.
  void after_fork() {
    for (auto& thread : threads_) thread.release();
    threads_.clear();
  }

 private:
  struct Block {
    void* raw = nullptr;
    size_t bytes = 0;
  };

  static void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // A ticket holds the round, how many tasks it has and which is next, so that a late thread can never take a task of
  // one round with the body of another: body_, context_ and offset_ hold still while a task of their round is open.
  void drain(int worker) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const uint64_t total = ticket >> 20 & kTaskMask, next = ticket & kTaskMask;
      if (next >= total) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      body_(context_, offset_ + int(next), worker);
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void start() {
    if (!threads_.empty()) return;
    stopping_ = false;
    const uint64_t seen = ticket_.load() >> 40;
    for (int worker = 1; worker < count_; ++worker)
      threads_.push_back(std::make_unique<std::thread>([this, worker, seen] { loop(worker, seen); }));
  }

  void loop(int worker, uint64_t seen) {
    auto news = [&] { return ticket_.load(std::memory_order_acquire) >> 40 != seen; };
    for (;;) {
      // A training step calls in again within microseconds, so spin a little before sleeping.
      for (int spin = 0; spin < kSpins && !news(); ++spin) pause();
      if (!news()) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, news);
      }
      seen = ticket_.load(std::memory_order_acquire) >> 40;
      if (stopping_) return;
      drain(worker);
    }
  }

  void stop() {
    if (threads_.empty()) return;
    stopping_ = true;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_ = (round_ + 1) & kRoundMask;
      ticket_.store(round_ << 40, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread->join();
    threads_.clear();
  }

  static constexpr int kSpins = 4000;
  static constexpr int kMostTasks = (1 << 20) - 1;
  static constexpr uint64_t kTaskMask = (1 << 20) - 1, kRoundMask = (1 << 24) - 1;
  int count_ = 1;
  std::vector<std::unique_ptr<std::thread>> threads_;
  std::vector<Block> scratch_{2};
  std::mutex entry_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> ticket_{0}, done_{0};
  std::atomic<bool> stopping_{false};
  uint64_t round_ = 0;
  void (*body_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  int offset_ = 0;
};

}  // namespace lf
