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
  // not fixed, so kernels give every task a result slot of its own and add up in task order.
  void run(int tasks, void (*body)(void*, int, int), void* context) {
    std::lock_guard<std::mutex> one_at_a_time(entry_);
    if (tasks <= 1 || count_ <= 1) {
      for (int i = 0; i < tasks; ++i) body(context, i, 0);
      return;
    }
    start();
    body_ = body;
    context_ = context;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(threads_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(0);
    while (busy_.load(std::memory_order_acquire) > 0) pause();
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

  void drain(int worker) {
    for (int i = next_.fetch_add(1); i < tasks_; i = next_.fetch_add(1)) body_(context_, i, worker);
  }

  void start() {
    if (!threads_.empty()) return;
    stopping_ = false;
    uint64_t seen = generation_.load();
    for (int worker = 1; worker < count_; ++worker)
      threads_.push_back(std::make_unique<std::thread>([this, worker, seen] { loop(worker, seen); }));
  }

  void loop(int worker, uint64_t seen) {
    for (;;) {
      // A training step calls in again within microseconds, so spin a little before sleeping.
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) pause();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stopping_) return;
      drain(worker);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void stop() {
    if (threads_.empty()) return;
    stopping_ = true;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread->join();
    threads_.clear();
  }

  static constexpr int kSpins = 4000;
  int count_ = 1;
  std::vector<std::unique_ptr<std::thread>> threads_;
  std::vector<Block> scratch_{2};
  std::mutex entry_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> next_{0}, busy_{0};
  std::atomic<bool> stopping_{false};
  void (*body_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  int tasks_ = 0;
};

}  // namespace lf
