"""Small captures in the layouts of published data sets, written file by file, each with its own projection formula.

Nothing of Lightfold is used here: poses are NumPy matrices, and every writer returns, for each picture, a function that
takes a point of the world to pixels by the formula that the data set publishes, from the numbers in its files. Pixels
count from the picture's corner; a formula that counts from the centre of the first pixel gets half a pixel more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

WIDTH, HEIGHT = 40, 30
FX, FY, CX, CY = 37.0, 35.5, 18.3, 16.1
COUNT = 5
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])

Project = Callable[[np.ndarray], np.ndarray]


@dataclass
class Written:
    """What was written: the path to open, the formula of each picture by frame name, and what else must come back."""

    path: Path
    project: dict[str, Project]
    split: dict[str, str]
    depth: float | None = None
    """Depth in capture units that the map of every frame holds."""


def poses() -> list[np.ndarray]:
    """World to camera, [4, 4] with OpenCV axes, of cameras on an arc that look at the origin."""
    found = []
    for i in range(COUNT):
        angle = 0.3 * i - 0.5
        centre = np.array([3 * math.sin(angle), -3 * math.cos(angle), 0.4 + 0.2 * i])
        forward = np.array([0.05 * i, 0.1, 0.0]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.1, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ centre
        found.append(pose)
    return found


def points() -> np.ndarray:
    return np.random.default_rng(3).random((24, 3)) - 0.5


def matrix(k: tuple[float, float, float, float] = (FX, FY, CX, CY), size: int = 3) -> np.ndarray:
    full = np.eye(size)
    full[0, 0], full[1, 1], full[0, 2], full[1, 2] = k
    return full


def pinhole(k: np.ndarray, cam_from_world: np.ndarray, shift: float = 0.0) -> Project:
    """u = K (R x + t), divided by its last, plus `shift`."""

    def project(x: np.ndarray) -> np.ndarray:
        u = (x @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]) @ k[:3, :3].T
        return u[:, :2] / u[:, 2:] + shift

    return project


def picture(path: Path, width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), 128).save(path)


def depth_png(path: Path, millimetres: int, width: int = 20, height: int = 15) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), millimetres, dtype=np.uint16)).save(path)


def text(path: Path, *rows: Any) -> None:
    """Numbers with all their digits, a line for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else " ".join(repr(float(v)) for v in np.ravel(row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def document(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def scannet(folder: Path) -> Written:
    k = matrix(size=4)
    text(folder / "intrinsic/intrinsic_color.txt", *k)
    project = {}
    for i, pose in enumerate(poses()):
        picture(folder / f"color/{i}.jpg")
        depth_png(folder / f"depth/{i}.png", 2500)
        text(folder / f"pose/{i}.txt", *np.linalg.inv(pose))
        project[f"color/{i}.jpg"] = pinhole(k, pose, shift=0.5)
    return Written(folder, project, {}, depth=2.5)


def scannetpp(folder: Path) -> Written:
    k1, k2, k3, k4 = -0.02, 0.01, -0.003, 0.0005
    frames: list[dict[str, Any]] = []
    project: dict[str, Project] = {}
    for i, pose in enumerate(poses()):
        name = f"DSC{i:05d}"
        picture(folder / f"dslr/resized_images/{name}.jpg")
        picture(folder / f"dslr/resized_anon_masks/{name}.png", mode="L")
        world_from_gl = np.linalg.inv(pose) @ OPENGL

        def fisheye(x: np.ndarray, gl: np.ndarray = world_from_gl) -> np.ndarray:
            cam = (x - gl[:3, 3]) @ gl[:3, :3] * [1, -1, -1]
            r = np.hypot(cam[:, 0], cam[:, 1])
            theta = np.arctan2(r, cam[:, 2])
            bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
            return np.stack([FX * bent * cam[:, 0] / r + CX, FY * bent * cam[:, 1] / r + CY], axis=1)

        project[f"resized_images/{name}.jpg"] = fisheye
        frames.append(
            {
                "file_path": f"{name}.jpg",
                "mask_path": f"{name}.png",
                "transform_matrix": world_from_gl.tolist(),
                "is_bad": False,
            }
        )
    values = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV_FISHEYE"}
    values |= {
        "k1": k1,
        "k2": k2,
        "k3": k3,
        "k4": k4,
        "has_mask": True,
        "frames": frames[:4],
        "test_frames": frames[4:],
    }
    document(folder / "dslr/nerfstudio/transforms.json", values)
    split = {name: "test" if name.endswith("4.jpg") else "train" for name in project}
    return Written(folder, project, split)


def arkitscenes(folder: Path) -> Written:
    root = folder / "41069021" / "41069021_frames"
    lines, project = [], {}
    for i, pose in enumerate(poses()):
        time = 6845.7 + 0.1 * i
        name = f"41069021_{time:.3f}"
        picture(root / f"lowres_wide/{name}.png")
        depth_png(root / f"lowres_depth/{name}.png", 1500)
        # The names of .pincam files may be a millisecond off, and the times of poses a few.
        text(
            root / f"lowres_wide_intrinsics/41069021_{time - (0.001 if i == 2 else 0):.3f}.pincam",
            [WIDTH, HEIGHT, FX, FY, CX, CY],
        )
        lines.append([time + 0.002, *Rotation.from_matrix(pose[:3, :3]).as_rotvec(), *pose[:3, 3]])
        project[f"lowres_wide/{name}.png"] = pinhole(matrix(), pose)
    text(root / "lowres_wide.traj", *lines)
    return Written(root.parent, project, {}, depth=1.5)


def phototourism(folder: Path) -> Written:
    images, rows, project, split = [], ["filename\tid\tsplit\tdataset"], {}, {}
    for i, pose in enumerate(poses()):
        name = f"photo {i}.jpg"
        picture(folder / "dense/images" / name)
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        numbers = " ".join(repr(float(v)) for v in (w, x, y, z, *pose[:3, 3]))
        images += [f"{i + 7} {numbers} 3 {name}", ""]
        part = "test" if i == 1 else "train"
        rows.append(f"{name}\t{i + 7}.0\t{part}\tbrandenburg_gate")
        if i < 4:
            project[name], split[name] = pinhole(matrix(), pose), part
    # An empty id marks a photograph that the authors discarded.
    rows[5] = rows[5].replace("\t11.0\t", "\t\t")
    sparse = folder / "dense/sparse"
    text(sparse / "cameras.txt", f"3 PINHOLE {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY}")
    text(sparse / "images.txt", *images)
    text(sparse / "points3D.txt", "5 0.1 0.2 0.3 10 20 30 0.5 7 0 11 0")
    text(folder / "brandenburg.tsv", *rows)
    return Written(folder, project, split)


def nsvf(folder: Path) -> Written:
    k = matrix(size=4)
    text(folder / "intrinsics.txt", *k)
    text(folder / "bbox.txt", [-0.5, -0.5, -0.5, 0.5, 0.5, 0.6, 0.1])
    project, split = {}, {}
    for i, pose in enumerate(poses()):
        name = f"{0 if i < 4 else 1}_{i:05d}"
        picture(folder / f"rgb/{name}.png", mode="RGBA")
        text(folder / f"pose/{name}.txt", *np.linalg.inv(pose))
        project[f"rgb/{name}.png"] = pinhole(k, pose)
        split[f"rgb/{name}.png"] = "train" if i < 4 else "test"
    return Written(folder, project, split)


def nerfpp(folder: Path) -> Written:
    project, split = {}, {}
    for i, pose in enumerate(poses()):
        part, width = ("test", WIDTH) if i == 4 else ("train", WIDTH + 4 * i)
        k = matrix((FX + i, FY, CX + 2 * i, CY), size=4)
        picture(folder / f"{part}/rgb/{i:06d}.png", width)
        text(folder / f"{part}/pose/{i:06d}.txt", np.linalg.inv(pose))
        text(folder / f"{part}/intrinsics/{i:06d}.txt", k)
        project[f"{part}/rgb/{i:06d}.png"] = pinhole(k, pose)
        split[f"{part}/rgb/{i:06d}.png"] = part
    text(folder / "camera_path/pose/000000.txt", np.eye(4))
    return Written(folder, project, split)


def fvs(folder: Path) -> Written:
    root = folder / "dense" / "ibr3d_pw_0.50"
    ks, project = [], {}
    for i, pose in enumerate(poses()):
        ks.append(matrix((FX + i, FY, CX, CY)))
        picture(root / f"im_{i:08d}.jpg")
        np.save(root / f"dm_{i:08d}.npy", np.full((15, 20), 4.5, dtype=np.float32))
        project[f"im_{i:08d}.jpg"] = pinhole(ks[-1], pose)
    np.save(root / "Ks.npy", np.array(ks))
    np.save(root / "Rs.npy", np.array([pose[:3, :3] for pose in poses()]))
    np.save(root / "ts.npy", np.array([pose[:3, 3] for pose in poses()]))
    return Written(folder, project, {}, depth=4.5)


def deepvoxels(folder: Path) -> Written:
    side, height, width, focal, cx, cy = 64, 480, 640, 525.0, 310.5, 245.5
    project, split = {}, {}
    for i, pose in enumerate(poses()):
        part = "test" if i == 4 else "train"
        root = folder / part / "cube"
        text(root / "intrinsics.txt", f"{focal} {cx} {cy} 0.", "0. 0. 0.", "0.", "1.0", f"{height} {width}")
        picture(root / f"rgb/{i:06d}.png", side, side)
        text(root / f"pose/{i:06d}.txt", np.linalg.inv(pose))
        scaled = (focal * side / height,) * 2 + ((cx + 0.5) * side / width, (cy + 0.5) * side / height)
        project[f"{part}/cube/rgb/{i:06d}.png"] = pinhole(matrix(scaled), pose)
        split[f"{part}/cube/rgb/{i:06d}.png"] = part
    return Written(folder, project, split)


def linemod(folder: Path) -> Written:
    project: dict[str, Project] = {}
    split: dict[str, str] = {}
    frames: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for i, pose in enumerate(poses()):
        part = "test" if i == 4 else "train"
        world_from_gl = np.linalg.inv(pose) @ OPENGL
        k = matrix((FX + i, FY, CX, CY))

        def rays(x: np.ndarray, k: np.ndarray = k, gl: np.ndarray = world_from_gl) -> np.ndarray:
            # Directions are ((i - cx) / fx, -(j - cy) / fy, -1) for whole i and j, turned by the matrix.
            cam = (x - gl[:3, 3]) @ gl[:3, :3]
            cam = cam / -cam[:, 2:]
            return np.stack([k[0, 2] + k[0, 0] * cam[:, 0], k[1, 2] - k[1, 1] * cam[:, 1]], axis=1) + 0.5

        picture(folder / f"images/{part}/{i:03d}.png")
        project[f"images/{part}/{i:03d}.png"], split[f"images/{part}/{i:03d}.png"] = rays, part
        entry = {"transform_matrix": world_from_gl.tolist(), "intrinsic_matrix": k.tolist()}
        frames[part].append({"file_path": f"/data/author/cat/images/{part}/{i:03d}.png", **entry})
    document(folder / "transforms_train.json", {"near": 1.7, "far": 4.2, "frames": frames["train"]})
    document(folder / "transforms_test.json", {"near": 1.4, "far": 4.9, "frames": frames["test"]})
    return Written(folder, project, split)


def pfm(path: Path, values: np.ndarray, order: str = "<") -> None:
    """One channel, rows from the bottom to the top; a negative scale says that the bytes are little endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n{'-1.0' if order == '<' else '1.0'}\n"
    path.write_bytes(head.encode() + values[::-1].astype(f"{order}f4").tobytes())


def mvsnet_camera(path: Path, pose: np.ndarray, k: np.ndarray, depths: str) -> None:
    text(path, "extrinsic", *pose, "", "intrinsic", *k, "", depths)


def mvsnet(folder: Path) -> Written:
    project = {}
    for i, pose in enumerate(poses()):
        picture(folder / f"images/{i:08d}.jpg")
        mvsnet_camera(folder / f"cams/{i:08d}_cam.txt", pose, matrix(), f"{1.5 + 0.1 * i} 0.02 192 {5.0 + i}")
        project[f"images/{i:08d}.jpg"] = pinhole(matrix(), pose)
    text(folder / "pair.txt", "5", "0", "2 1 90.5 2 70.25")
    return Written(folder, project, {})


def blendedmvs(folder: Path) -> Written:
    project = {}
    for i, pose in enumerate(poses()):
        picture(folder / f"blended_images/{i:08d}.jpg")
        picture(folder / f"blended_images/{i:08d}_masked.jpg")
        mvsnet_camera(folder / f"cams/{i:08d}_cam.txt", pose, matrix(), "-0.3 0.02")
        pfm(folder / f"rendered_depth_maps/{i:08d}.pfm", np.full((HEIGHT, WIDTH), 3.25), "<" if i % 2 else ">")
        project[f"blended_images/{i:08d}.jpg"] = pinhole(matrix(), pose)
    text(folder / "cams/pair.txt", "5", "0", "2 1 90.5 2 70.25")
    return Written(folder, project, {}, depth=3.25)


def dtu(folder: Path) -> Written:
    scan, project = folder / "Rectified" / "scan65", {}
    for i, pose in enumerate(poses()):
        for light in ("0", "3", "max"):
            picture(scan / f"rect_{i + 1:03d}_{light}{'' if light == 'max' else '_r5000'}.png")
        # A projection is known up to scale.
        projection = 7.0 * matrix() @ pose[:3]
        text(folder / f"Calibration/cal18/pos_{i + 1:03d}.txt", *projection)

        def project_one(x: np.ndarray, p: np.ndarray = projection) -> np.ndarray:
            u = x @ p[:, :3].T + p[:, 3]
            return u[:, :2] / u[:, 2:] + 0.5

        project[f"rect_{i + 1:03d}_3_r5000.png"] = project_one
    return Written(scan, project, {})


def eyefultower(folder: Path, fisheye: bool = True) -> Written:
    """Pictures at half the size that the cameras are for, stored column by column."""
    root = folder / "table"
    entries: list[dict[str, Any]] = []
    project: dict[str, Project] = {}
    split = {}
    values = [-0.02, 0.01, -0.003, 9.0, 9.0, 9.0, 0.004, -0.002] if fisheye else [-0.1, 0.05, 0.004, -0.002, 0.01]
    width, height = 60, 80
    for i, pose in enumerate(poses()):
        camera = 5 if i == 4 else i
        written = f"{camera}/{camera}_DSC{i:04d}"
        k = matrix((55.0, 54.0, 28.3, 41.1))
        picture(root / f"images-jpeg-1k/{written}.jpg", width // 2, height // 2)

        def bent(x: np.ndarray, k: np.ndarray = k, pose: np.ndarray = pose) -> np.ndarray:
            cam = x @ pose[:3, :3].T + pose[:3, 3]
            u, v = cam[:, 0] / cam[:, 2], cam[:, 1] / cam[:, 2]
            if fisheye:
                k1, k2, k3, _, _, _, p1, p2 = values
                r = np.hypot(u, v)
                u, v = u * np.arctan(r) / r, v * np.arctan(r) / r
            else:
                k1, k2, p1, p2, k3 = values
            r2 = u**2 + v**2
            radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
            du = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2)
            dv = v * radial + p1 * (r2 + 2 * v**2) + 2 * p2 * u * v
            return np.stack([(k[0, 0] * du + k[0, 2]) / 2, (k[1, 1] * dv + k[1, 2]) / 2], axis=1)

        name = f"images-jpeg-1k/{written}.jpg"
        project[name], split[name] = bent, "test" if camera == 5 else "train"
        entries.append(
            {
                "width": width,
                "height": height,
                "cameraId": written,
                "K": k.T.tolist(),
                "T": pose.T.tolist(),
                "distortionModel": "Fisheye" if fisheye else "RadialAndTangential",
                "distortion": values,
                "frameId": i,
                "sensorId": str(camera),
            }
        )
    document(root / "cameras.json", {"KRT": entries})
    ids = [entry["cameraId"] for entry in entries]
    document(root / "splits.json", {"train": ids[:4], "test": ids[4:]})
    return Written(root, project, split)


def eyefultower_v2(folder: Path) -> Written:
    return eyefultower(folder, fisheye=False)


def neus_blendedmvs(folder: Path) -> Written:
    """BlendedMVS as NeuS publishes it: names of three digits, in a world with a scale of its own."""
    arrays, project = {}, {}
    for i, pose in enumerate(poses()):
        picture(folder / f"image/{i:03d}.png")
        mask = Image.new("L", (WIDTH, HEIGHT), 0)
        mask.paste(255, (10, 8, 30, 24))
        (folder / "mask").mkdir(exist_ok=True)
        mask.save(folder / f"mask/{i:03d}.png")
        scale = np.diag([0.25, 0.25, 0.25, 1.0])
        scale[:3, 3] = [0.1, -0.2, 0.3]
        world_mat = np.eye(4)
        world_mat[:3] = matrix() @ (pose @ np.linalg.inv(scale))[:3]
        arrays |= {f"world_mat_{i}": world_mat, f"world_mat_inv_{i}": np.linalg.inv(world_mat)}
        arrays |= {f"scale_mat_{i}": scale, f"scale_mat_inv_{i}": np.linalg.inv(scale)}

        def project_one(x: np.ndarray, p: np.ndarray = (world_mat @ scale)[:3]) -> np.ndarray:
            u = x @ p[:, :3].T + p[:, 3]
            return u[:, :2] / u[:, 2:] + 0.5

        project[f"image/{i:03d}.png"] = project_one
    np.savez(folder / "cameras_sphere.npz", **arrays)
    return Written(folder, project, {})


def sdfstudio(folder: Path) -> Written:
    frames, project = [], {}
    for i, pose in enumerate(poses()):
        picture(folder / f"{i:06d}_rgb.png")
        k = matrix((FX + i, FY, CX, CY), size=4)
        entry = {"rgb_path": f"{i:06d}_rgb.png", "camtoworld": np.linalg.inv(pose).tolist(), "intrinsics": k.tolist()}
        frames.append(entry)
        project[entry["rgb_path"]] = pinhole(k, pose)
    box = {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.5, "far": 4.5, "radius": 1.0, "collider_type": "near_far"}
    values = {"camera_model": "OPENCV", "height": HEIGHT, "width": WIDTH, "has_mono_prior": False, "pairs": None}
    values |= {"worldtogt": np.eye(4).tolist(), "scene_box": box, "frames": frames}
    document(folder / "meta_data.json", values)
    return Written(folder, project, {})


# The reader that each layout is for.
WRITERS: dict[str, tuple[str, Callable[[Path], Written]]] = {
    "scannet": ("scannet", scannet),
    "scannetpp": ("scannetpp", scannetpp),
    "arkitscenes": ("arkitscenes", arkitscenes),
    "phototourism": ("phototourism", phototourism),
    "nsvf": ("nsvf", nsvf),
    "nerfpp": ("nerfpp", nerfpp),
    "fvs": ("fvs", fvs),
    "deepvoxels": ("deepvoxels", deepvoxels),
    "linemod": ("linemod", linemod),
    "mvsnet": ("mvsnet", mvsnet),
    "blendedmvs": ("mvsnet", blendedmvs),
    "blendedmvs as neus": ("neus", neus_blendedmvs),
    "sdfstudio": ("sdfstudio", sdfstudio),
    "dtu": ("dtu", dtu),
    "eyefultower v1": ("eyefultower", eyefultower),
    "eyefultower v2": ("eyefultower", eyefultower_v2),
}
