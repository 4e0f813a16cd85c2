"""From pictures to cameras: structure from motion by COLMAP, in a process of its own, and how good it is."""
