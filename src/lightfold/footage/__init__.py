"""From what a camera left behind to pictures that can be solved: video, photos, panoramas, masks."""
