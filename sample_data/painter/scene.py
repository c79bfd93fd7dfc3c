"""What is behind the people, and what the camera does to the picture."""

import cv2
import numpy as np

from sample_data.painter.canvas import Array, Canvas, Patch, grow, noise
from sample_data.painter.curves import ellipse, moved, smooth
from sample_data.painter.identity import Colour
from sample_data.painter.pose import Light, round_shade


def random_colour(rng: np.random.Generator, low: float = 0.05, high: float = 0.95) -> Colour:
    """Any colour, muted ones more often."""
    grey = rng.uniform(low, high)
    strength = 0.7 * rng.uniform(0, 1) ** 2
    r, g, b = np.clip(grey + strength * rng.uniform(-0.6, 0.6, 3), low, high)
    return float(r), float(g), float(b)


def random_light(rng: np.random.Generator) -> Light:
    """A lamp in front of the people, mostly from above."""
    across, up = rng.uniform(-0.75, 0.75), rng.uniform(-0.05, 0.75)
    direction = np.array([across, -up, 0.9])
    x, y, z = direction / np.linalg.norm(direction)
    key = rng.uniform(0.35, 0.8)
    return Light((float(x), float(y), float(z)), float(rng.uniform(1.02, 1.15) - key), float(key))


def background(shape: tuple[int, int], light: Light, rng: np.random.Generator) -> Canvas:
    """A cluttered background, out of focus to some degree; never with a face in it."""
    height, width = shape
    cells = int(rng.integers(2, 5))
    colours = np.array([random_colour(rng) for _ in range(cells * cells)], np.float32)
    calm = rng.uniform(0.15, 0.8)
    colours = colours.mean(axis=0) + calm * (colours - colours.mean(axis=0))
    pixels = grow(colours.reshape(cells, cells, 3), height, width)
    canvas = Canvas(np.ascontiguousarray(np.clip(pixels, 0, 1)))
    short = min(shape)

    texture = rng.integers(4)
    if texture == 0:
        clouds = noise("clouds", shape, rng, zoom=short / 200)
        canvas.pixels *= 1 + rng.uniform(0.03, 0.2) * clouds[..., None]
    elif texture == 1:
        planks = noise("strands", shape, rng, angle=float(rng.uniform(0, 180)), zoom=short / 150)
        canvas.pixels *= 1 + rng.uniform(0.03, 0.14) * planks[..., None]
    elif texture == 2:
        _tiles(canvas, rng)

    for _ in range(int(rng.integers(0, 14))):
        _thing(canvas, light, rng)
    if rng.random() < 0.7:
        sigma = rng.uniform(0.4, 4.0) * short / 256
        cv2.GaussianBlur(canvas.pixels, (0, 0), sigma, dst=canvas.pixels)
    return canvas


def _tiles(canvas: Canvas, rng: np.random.Generator) -> None:
    """Bricks, tiles or shelves."""
    height, width = canvas.shape
    rows, columns = int(rng.integers(3, 12)), int(rng.integers(2, 12))
    bright = rng.uniform(0.7, 1.25, (rows, columns)).astype(np.float32)
    grid = cv2.resize(bright, (width, height), interpolation=cv2.INTER_NEAREST)
    y = np.arange(height) * rows / height % 1 < 0.06
    x = np.arange(width) * columns / width % 1 < 0.06
    grid[y] *= 0.6
    grid[:, x] *= 0.6
    canvas.pixels *= grid[..., None]


def foreground(canvas: Canvas, light: Light, rng: np.random.Generator) -> Patch:
    """Paint a blurred object in front of everybody, at the picture's edge; gives its cover."""
    height, width = canvas.shape
    short = min(height, width)
    x, y = rng.uniform(0, width), rng.uniform(0.55, 1.0) * height
    size = short * rng.uniform(0.08, 0.3)
    if rng.random() < 0.5:
        outline = ellipse((x, y), (size, size * rng.uniform(0.6, 1.6)))
    else:
        outline = smooth(rng.uniform(0.6, 1.2, (9, 1)) * ellipse((0, 0), (size, 1.5 * size), 9))
        outline += (x, y)
    patch = canvas.cover(outline, soft=float(rng.uniform(0.3, 0.012 * short)))
    if patch.alpha.size:
        shade = round_shade(patch, (x, y), (1.2 * size, 1.8 * size), light)
        canvas.paint(patch, np.array(random_colour(rng), np.float32) * shade)
    return patch


def _thing(canvas: Canvas, light: Light, rng: np.random.Generator) -> None:
    """One object: a ball, a dial, a panel, a leaf, a pole."""
    height, width = canvas.shape
    short = min(height, width)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    size = short * rng.uniform(0.03, 0.22)
    colour = random_colour(rng)
    kind = rng.integers(5)
    if kind == 0:
        radii = (size, size * rng.uniform(0.85, 1.25))
        patch = canvas.cover(ellipse((x, y), radii))
        if patch.alpha.size:
            canvas.paint(
                patch, np.array(colour, np.float32) * round_shade(patch, (x, y), radii, light)
            )
    elif kind == 1:
        canvas.paint(canvas.cover(ellipse((x, y), (size, size))), colour)
        canvas.paint(canvas.cover(ellipse((x, y), (0.85 * size, 0.85 * size))), random_colour(rng))
        for angle in rng.uniform(0, 2 * np.pi, 2):
            tip = np.array([np.cos(angle), np.sin(angle)]) * 0.7 * size
            side = np.array([-tip[1], tip[0]]) * 0.06
            hand = moved(np.array([-side, side, tip]), x, y)
            canvas.paint(canvas.cover(hand), (0.05, 0.05, 0.05))
    elif kind == 2:
        angle = np.deg2rad(rng.choice([0.0, rng.uniform(-30, 30)]))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * rng.uniform(0.4, 1.8, 2) * size
        canvas.paint(canvas.cover(corners @ turn + (x, y)), colour)
    elif kind == 3:
        points = rng.uniform(-1, 1, (6, 2)) * size
        order = np.argsort(np.arctan2(points[:, 1], points[:, 0]))
        canvas.paint(canvas.cover(moved(smooth(points[order]), x, y)), colour)
    else:
        lean, thick = rng.uniform(-0.3, 0.3) * height, rng.uniform(0.01, 0.05) * short
        pole = np.array([(x, 0), (x + thick, 0), (x + lean + thick, height), (x + lean, height)])
        canvas.paint(canvas.cover(pole), colour)


def develop(canvas: Canvas, rng: np.random.Generator) -> Array:
    """What the camera makes of the canvas: uneven light, a colour cast, blur, noise; (h, w, 3)."""
    height, width = canvas.shape
    short = min(height, width)
    corners = rng.uniform(1 - rng.uniform(0, 0.45), 1.12, (2, 2)).astype(np.float32)
    cast = 1 + rng.uniform(-1, 1, 3) * rng.choice([0.02, 0.12])
    pixels = canvas.pixels * grow(corners, height, width)[..., None] * cast.astype(np.float32)
    if rng.random() < 0.15:
        _bar_shadow(pixels, rng)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.2) * max(1.0, short / 512)
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
    strength = rng.uniform(0.0, 0.035)
    grain = noise("grain", (height, width), rng)
    pixels += (strength * grain)[..., None]
    if rng.random() < 0.5:
        pixels[..., 0] += 0.6 * strength * noise("grain", (height, width), rng)
        pixels[..., 2] += 0.8 * strength * noise("grain", (height, width), rng)
    contrast = rng.uniform(0.8, 1.15)
    mean = float(pixels.mean())
    if rng.random() < 0.07:
        pixels[:] = pixels.mean(axis=2, keepdims=True)
    result: Array = (pixels - mean) * np.float32(contrast) + np.float32(mean)
    return result


def _bar_shadow(pixels: Array, rng: np.random.Generator) -> None:
    """A window bar's or a branch's soft shadow across everything."""
    canvas = Canvas(pixels)
    height, width = canvas.shape
    x0, x1 = rng.uniform(-0.2, 1.2, 2) * width
    thick = rng.uniform(0.08, 0.3) * width
    bar = np.array([(x0, -5.0), (x0 + thick, -5.0), (x1 + thick, height + 5.0), (x1, height + 5.0)])
    canvas.darken(canvas.cover(bar, soft=0.02 * width), float(rng.uniform(0.15, 0.4)))
