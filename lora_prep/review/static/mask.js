// A mask at the image's own resolution, one byte a pixel, and the history of what was done to it.
// Canvases are only looked at: they would round what is painted, or be read back with noise.

const TILE = 64;
const MAX_HISTORY_BYTES = 96e6;
const MAX_HISTORY_STEPS = 200;

export class Mask {
  constructor(width, height, data) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.columns = Math.ceil(width / TILE);
    this.undone = [];
    this.done = [];
    this.bytes = 0;
    this.step = null;
    this.unsaved = null;
  }

  // The values in a rectangle, row by row.
  rows({ x, y, width, height }) {
    const part = new Uint8Array(width * height);
    for (let row = 0; row < height; row++) {
      const start = (y + row) * this.width + x;
      part.set(this.data.subarray(start, start + width), row * width);
    }
    return part;
  }

  // Everything until `end` is one step of the history.
  begin() {
    this.end();
    this.step = new Map();
  }

  end() {
    const step = this.step;
    this.step = null;
    if (!step || step.size === 0) return;
    const tiles = [...step].map(([index, before]) => ({
      index,
      before,
      after: this.rows(this.tile(index)),
    }));
    this.done.push(tiles);
    this.undone = [];
    this.bytes = this.size(this.done);
    while (
      this.done.length > 1 &&
      (this.bytes > MAX_HISTORY_BYTES || this.done.length > MAX_HISTORY_STEPS)
    ) {
      this.bytes -= this.size([this.done.shift()]);
    }
  }

  // Takes the last step back; returns what changed, or null.
  undo() {
    this.end();
    return this.move(this.done, this.undone, "before");
  }

  redo() {
    this.end();
    return this.move(this.undone, this.done, "after");
  }

  // Paints all pixels whose centre is within `radius` of the line, at least the nearest one;
  // returns what may have changed.
  line(x0, y0, x1, y1, radius, value) {
    const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
    const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius));
    const right = Math.min(this.width, Math.ceil(Math.max(x0, x1) + radius) + 1);
    const bottom = Math.min(this.height, Math.ceil(Math.max(y0, y1) + radius) + 1);
    if (left >= right || top >= bottom) return null;
    const rect = { x: left, y: top, width: right - left, height: bottom - top };
    this.touch(rect);
    const dx = x1 - x0;
    const dy = y1 - y0;
    const length = dx * dx + dy * dy;
    const limit = Math.max(radius, Math.SQRT1_2) ** 2;
    for (let y = top; y < bottom; y++) {
      const py = y + 0.5 - y0;
      for (let x = left; x < right; x++) {
        const px = x + 0.5 - x0;
        const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= limit) this.data[y * this.width + x] = value;
      }
    }
    this.note(rect);
    return rect;
  }

  // Becomes another mask, as one step of the history; only tiles that differ are kept for it.
  become(data) {
    this.begin();
    let changed = null;
    const count = this.columns * Math.ceil(this.height / TILE);
    for (let index = 0; index < count; index++) {
      const rect = this.tile(index);
      if (!this.differs(data, rect)) continue;
      this.touch(rect);
      for (let y = rect.y; y < rect.y + rect.height; y++) {
        const start = y * this.width + rect.x;
        this.data.set(data.subarray(start, start + rect.width), start);
      }
      changed = joined(changed, rect);
    }
    this.end();
    if (changed) this.note(changed);
    return changed;
  }

  // Hands over what is not saved yet; `note` takes it back where saving failed.
  takeUnsaved() {
    const rect = this.unsaved;
    this.unsaved = null;
    return rect;
  }

  note(rect) {
    this.unsaved = joined(this.unsaved, rect);
  }

  whole() {
    return { x: 0, y: 0, width: this.width, height: this.height };
  }

  coverage() {
    let sum = 0;
    for (let i = 0; i < this.data.length; i++) sum += this.data[i];
    return sum / 255 / this.data.length;
  }

  tile(index) {
    const x = (index % this.columns) * TILE;
    const y = Math.floor(index / this.columns) * TILE;
    const width = Math.min(TILE, this.width - x);
    return { x, y, width, height: Math.min(TILE, this.height - y) };
  }

  differs(data, rect) {
    for (let y = rect.y; y < rect.y + rect.height; y++) {
      const start = y * this.width + rect.x;
      for (let i = start; i < start + rect.width; i++) if (this.data[i] !== data[i]) return true;
    }
    return false;
  }

  // Keeps the tiles under a rectangle as they are now, if this step has not changed them yet.
  touch({ x, y, width, height }) {
    if (!this.step) return;
    const lastRow = Math.floor((y + height - 1) / TILE);
    const lastColumn = Math.floor((x + width - 1) / TILE);
    for (let row = Math.floor(y / TILE); row <= lastRow; row++) {
      for (let column = Math.floor(x / TILE); column <= lastColumn; column++) {
        const index = row * this.columns + column;
        if (!this.step.has(index)) this.step.set(index, this.rows(this.tile(index)));
      }
    }
  }

  move(from, to, which) {
    const step = from.pop();
    if (!step) return null;
    let changed = null;
    for (const one of step) {
      const rect = this.tile(one.index);
      for (let row = 0; row < rect.height; row++) {
        const start = row * rect.width;
        const values = one[which].subarray(start, start + rect.width);
        this.data.set(values, (rect.y + row) * this.width + rect.x);
      }
      changed = joined(changed, rect);
    }
    to.push(step);
    this.note(changed);
    return changed;
  }

  size(steps) {
    let bytes = 0;
    for (const step of steps) for (const one of step) bytes += 2 * one.before.length;
    return bytes;
  }
}

function joined(a, b) {
  if (!a) return b;
  const x = Math.min(a.x, b.x);
  const y = Math.min(a.y, b.y);
  return {
    x,
    y,
    width: Math.max(a.x + a.width, b.x + b.width) - x,
    height: Math.max(a.y + a.height, b.y + b.height) - y,
  };
}
