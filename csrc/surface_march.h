// Where rays lose light to a distance field: steps through occupied cells, the distance in the middle of each, and which
// of the steps have a weight that counts.
//
// Rays of a group walk together, a few steps at a time, so that the field sees whole tiles of points. A ray leaves the
// group when no light is left on it: nothing behind a surface is evaluated. Between middles of neighbouring steps f is
// linear, so a step is settled, with its ends, when the next one is known; one is pending between two rounds.
#pragma once
#include "field.h"
#include "surface.h"

namespace lf {

struct SurfaceMarchArgs {
  GridShape grid;
  Occupancy occupancy;
  double step;   // length of all steps, scene units
  int most;      // steps per ray
  double inv_s;  // steepness of the logistic function that turns distance into opacity
  double keep;   // a step counts if its weight is more
};

namespace LF_ISA {

constexpr int kTogether = 64;  // rays of a group
constexpr int kAhead = 6;      // their steps per round

template <class T>
struct SurfaceMarch {
  const Surface<T>& field;  // of one output
  const RayArgs<T>& rays;
  const SurfaceMarchArgs& args;

  static constexpr int kPoints = kTogether * kAhead;
  static constexpr int kPieces = kPoints + kTogether;  // with those that were pending
  size_t scratch_bytes() const {
    return sizeof(T) * size_t(6 * kPoints + 4 * (kPieces + kLanes<T>)) + sizeof(int) * kPieces + 64 * 12 + field.forward_scratch();
  }

  struct Ray {
    Walk<T> at;
    int taken;       // steps so far
    T through;       // share of the light that is left
    bool live;
    bool pending;    // whether the last step has yet to hear what follows it
    bool joined;     // whether a step lies directly before it,
    T t, f, before;  // its distance along the ray, f in its middle, and how much f rose up to there
  };

  // At most kTogether rays from `begin` on: the kept steps' distances [most] per ray, their number, and how many points
  // were evaluated.
  void group(int64_t begin, int count, T* t_out, int32_t* kept, int32_t* evaluated, Arena arena) const {
    const Stepping stepping{args.step, 0.0};
    const T step = T(args.step), inv_s = T(args.inv_s), keep = T(args.keep);
    T* t = arena.take<T>(kPoints);
    T* unused = arena.take<T>(kPoints);
    T* points = arena.take<T>(3 * kPoints);
    T* f = arena.take<T>(kPoints);
    T* start = arena.take<T>(kPieces + kLanes<T>);  // f at both ends of settled steps; then their opacity
    T* end = arena.take<T>(kPieces + kLanes<T>);
    T* settled = arena.take<T>(kPieces + kLanes<T>);  // their distances along the ray
    int* owner = arena.take<int>(kPieces);
    Ray group[kTogether];
    for (int r = 0; r < count; ++r) {
      const int64_t i = begin + r;
      const T jitter = rays.seed ? T(random_unit(rays.seed, uint64_t(i))) : T(0.5);
      group[r] = Ray{start_walk(args.grid, stepping, rays.origin + 3 * i, rays.direction + 3 * i, rays.near[i], rays.far[i], jitter),
                     0, T(1), true, false, false, T(0), T(0), T(0)};
      kept[i] = evaluated[i] = 0;
    }
    for (int live = count; live > 0;) {
      int n = 0, found[kTogether];
      for (int r = 0; r < count; ++r) {
        Ray& ray = group[r];
        found[r] = 0;
        if (!ray.live) continue;
        const T *o = rays.origin + 3 * (begin + r), *d = rays.direction + 3 * (begin + r);
        const int wanted = min(kAhead, args.most - ray.taken);
        if (wanted > 0) found[r] = walk(args.grid, args.occupancy, stepping, o, d, ray.at, wanted, t + n, unused);
        for (int i = 0; i < found[r]; ++i, ++n)
          for (int a = 0; a < 3; ++a) points[3 * n + a] = o[a] + (t[n] + T(0.5) * step) * d[a];
        ray.taken += found[r];
        evaluated[begin + r] += found[r];
        if (found[r] < kAhead) ray.live = false, --live;  // This is its last round.
      }
      for (int s = 0; s < n; s += kTile) field.forward(points + 3 * s, min(kTile, n - s), f + s, nullptr, nullptr, arena);
      int pieces = 0;
      auto settle = [&](int r, bool followed, T after) {
        const Ray& ray = group[r];
        // At the ends of a run f goes on as it came, and in a run of one it falls as steeply as a distance can.
        if (!followed) after = ray.joined ? ray.before : -step;
        const T before = ray.joined ? ray.before : followed ? after : -step;
        start[pieces] = ray.f - T(0.5) * before;
        end[pieces] = ray.f + T(0.5) * after;
        settled[pieces] = ray.t;
        owner[pieces++] = r;
      };
      for (int r = 0, s = 0; r < count; ++r) {
        Ray& ray = group[r];
        for (int i = 0; i < found[r]; ++i, ++s) {
          const bool joined = ray.pending && t[s] - ray.t < T(1.5) * step;
          const T rise = f[s] - ray.f;
          if (ray.pending) settle(r, joined, rise);
          ray.pending = true, ray.joined = joined, ray.before = rise, ray.t = t[s], ray.f = f[s];
        }
        if (ray.pending && !ray.live) settle(r, false, T(0)), ray.pending = false;
      }
      for (int i = 0; i < pieces; i += kLanes<T>) store(start + i, opacity(load(start + i), load(end + i), inv_s));
      for (int i = 0; i < pieces; ++i) {
        Ray& ray = group[owner[i]];
        const int64_t r = begin + owner[i];
        if (ray.through * start[i] > keep) t_out[r * args.most + kept[r]++] = settled[i];
        ray.through *= T(1) - start[i];
        // No step behind here can weigh more than the light that gets here.
        if (!(ray.through > keep) && ray.live) ray.live = ray.pending = false, --live;
      }
    }
  }

  // 1 - exp(-tau) with tau = softplus(-s f_end) - softplus(-s f_start), or 0 where f rises.
  static Vec<T> opacity(Vec<T> start, Vec<T> end, T inv_s) {
    const Vec<T> zero{};
    Vec<T> high, low, slope;
    soft(end * -inv_s, T(1), high, slope);
    soft(start * -inv_s, T(1), low, slope);
    const Vec<T> difference = high - low, tau = difference > zero ? difference : zero;
    const Vec<T> series = tau * (T(1) - tau * (T(0.5) - tau * T(1.0 / 6))), whole = T(1) - vexp(-tau);
    return tau < splat(sizeof(T) == 4 ? T(1e-2) : T(1e-4)) ? series : whole;
  }
};

}  // namespace LF_ISA
}  // namespace lf
