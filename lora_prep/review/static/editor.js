// The picture with the mask over it: zoom, pan, brush, clicks. Knows nothing of the server.

const MAX_ZOOM = 32;
const CLICK_SLOP = 4;

export class Editor {
  // `events`: changed() after a step, prompted(prompts) after a click or a box, asksFull(), moved().
  constructor(stage, events) {
    this.stage = stage;
    this.events = events;
    this.picture = stage.querySelector("#picture");
    this.overlay = stage.querySelector("#overlay");
    this.marks = stage.querySelector("#marks");
    this.tool = "paint";
    this.radius = 16;
    this.look = "dim";
    this.mask = null;
    this.image = null;
    this.clicks = [];
    this.box = null;
    this.cursor = null;
    this.last = null;
    this.drag = null;
    this.holdsSpace = false;
    this.frame = 0;
    new ResizeObserver(() => this.resize()).observe(stage);
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    stage.addEventListener("pointerup", (event) => this.up(event));
    stage.addEventListener("pointercancel", (event) => this.up(event));
    stage.addEventListener("pointerleave", () => this.leave());
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  show(image, mask) {
    this.image = image;
    this.mask = mask;
    this.drag = null;
    this.last = null;
    this.forget();
    this.fit();
  }

  // A sharper picture of the same image.
  sharpen(image) {
    this.image = image;
    this.draw();
  }

  forget() {
    this.clicks = [];
    this.box = null;
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.picture, this.overlay, this.marks]) {
      canvas.width = Math.max(1, Math.round(this.stage.clientWidth * ratio));
      canvas.height = Math.max(1, Math.round(this.stage.clientHeight * ratio));
    }
    this.ratio = ratio;
    if (this.mask) this.fit();
  }

  fit() {
    if (!this.mask) return;
    const { width, height } = this.picture;
    this.scale = Math.min(width / this.mask.width, height / this.mask.height) * 0.96;
    this.x = (width - this.mask.width * this.scale) / 2;
    this.y = (height - this.mask.height * this.scale) / 2;
    this.draw();
  }

  // Zooms by a factor and keeps what is at a point of the canvas where it is.
  zoom(factor, x = this.picture.width / 2, y = this.picture.height / 2) {
    if (!this.mask) return;
    const least = Math.min(this.picture.width / this.mask.width, this.picture.height / this.mask.height) / 4;
    const scale = Math.min(MAX_ZOOM * this.ratio, Math.max(least, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    if (this.image && this.scale * this.mask.width > this.image.width * 1.2) this.events.asksFull();
    this.draw();
  }

  setRadius(radius) {
    this.radius = Math.min(2000, Math.max(0.5, radius));
    this.draw();
  }

  // From an event to pixels of the image.
  at(event) {
    const [x, y] = this.onCanvas(event);
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  onCanvas(event) {
    const place = this.stage.getBoundingClientRect();
    return [(event.clientX - place.left) * this.ratio, (event.clientY - place.top) * this.ratio];
  }

  down(event) {
    if (!this.mask || this.drag) return;
    this.stage.setPointerCapture(event.pointerId);
    const [x, y] = this.at(event);
    const other = event.button === 2 || event.altKey;
    if (event.button === 1 || this.holdsSpace || this.tool === "pan") {
      this.drag = { kind: "pan", from: this.onCanvas(event), x: this.x, y: this.y };
    } else if (this.tool === "click") {
      this.drag = { kind: "click", x, y, inside: !other, start: [event.clientX, event.clientY] };
    } else {
      const value = (this.tool === "paint") !== other ? 255 : 0;
      const [fromX, fromY] = event.shiftKey && this.last ? this.last : [x, y];
      this.mask.begin();
      this.mask.line(fromX, fromY, x, y, this.radius, value);
      this.drag = { kind: "brush", value };
      this.last = [x, y];
      this.draw();
    }
    event.preventDefault();
  }

  move(event) {
    if (!this.mask) return;
    const [x, y] = this.at(event);
    this.cursor = [x, y];
    const drag = this.drag;
    if (drag?.kind === "pan") {
      const [canvasX, canvasY] = this.onCanvas(event);
      this.x = drag.x + canvasX - drag.from[0];
      this.y = drag.y + canvasY - drag.from[1];
    } else if (drag?.kind === "brush") {
      for (const one of event.getCoalescedEvents?.() ?? [event]) {
        const [toX, toY] = this.at(one);
        this.mask.line(this.last[0], this.last[1], toX, toY, this.radius, drag.value);
        this.last = [toX, toY];
      }
    } else if (drag?.kind === "click") {
      const far = Math.hypot(event.clientX - drag.start[0], event.clientY - drag.start[1]);
      drag.boxed ||= far > CLICK_SLOP;
    }
    this.draw();
  }

  up(event) {
    const drag = this.drag;
    this.drag = null;
    if (!drag || !this.mask) return;
    if (drag.kind === "brush") {
      this.mask.end();
      this.events.changed();
    } else if (drag.kind === "click" && event.type === "pointerup") {
      const [x, y] = this.at(event);
      this.prompt(drag, x, y);
    }
    this.draw();
  }

  prompt(drag, x, y) {
    const { width, height } = this.mask;
    const inX = (value) => Math.min(width, Math.max(0, value));
    const inY = (value) => Math.min(height, Math.max(0, value));
    if (drag.boxed) {
      const xs = [inX(drag.x), inX(x)].sort((a, b) => a - b);
      const ys = [inY(drag.y), inY(y)].sort((a, b) => a - b);
      if (xs[1] - xs[0] < 1 || ys[1] - ys[0] < 1) return;
      this.box = [xs[0], ys[0], xs[1], ys[1]];
      this.clicks = [];
    } else {
      if (x < 0 || y < 0 || x > width || y > height) return;
      this.clicks.push([x, y, drag.inside]);
    }
    this.events.prompted({ clicks: this.clicks, box: this.box });
  }

  leave() {
    this.cursor = null;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 33 : 1;
    const [x, y] = this.onCanvas(event);
    this.zoom(Math.exp(-event.deltaY * lines * 0.0015), x, y);
  }

  draw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.drawPicture();
      this.drawMask();
      this.drawMarks();
    });
  }

  drawPicture() {
    const context = this.picture.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.picture.width, this.picture.height);
    if (!this.image || !this.mask) return;
    context.imageSmoothingEnabled = this.scale < 4;
    context.imageSmoothingQuality = "high";
    const { width, height } = this.mask;
    context.drawImage(this.image, this.x, this.y, width * this.scale, height * this.scale);
  }

  // The mask as it looks on the screen: sampled at the screen's pixels, so at any size it is quick.
  drawMask() {
    const context = this.overlay.getContext("2d");
    const { width: across, height: down } = this.overlay;
    context.clearRect(0, 0, across, down);
    if (!this.mask || this.look === "off") return;
    const { width, height, data } = this.mask;
    const left = Math.max(0, Math.floor(this.x));
    const top = Math.max(0, Math.floor(this.y));
    const right = Math.min(across, Math.ceil(this.x + width * this.scale));
    const bottom = Math.min(down, Math.ceil(this.y + height * this.scale));
    if (left >= right || top >= bottom) return;
    const columns = new Int32Array(right - left + 1);
    for (let i = 0; i < columns.length; i++) {
      const column = Math.floor((left + i + 0.5 - this.x) / this.scale);
      columns[i] = Math.min(width - 1, Math.max(0, column));
    }
    const picture = context.createImageData(right - left, bottom - top);
    const pixels = new Uint32Array(picture.data.buffer);
    const dims = this.look === "dim";
    const shades = new Uint32Array(256);
    for (let value = 0; value < 256; value++) {
      // Little-endian RGBA: what is ignored is dimmed, or what is trained on is tinted.
      const weight = dims ? 255 - value : value;
      const alpha = Math.round(weight * (dims ? 0.66 : 0.45));
      shades[value] = ((alpha << 24) | (dims ? 0x281c14 : 0x8cff00)) >>> 0;
    }
    const edge = 0xff8cff00;
    const rowAt = (y) =>
      Math.min(height - 1, Math.max(0, Math.floor((y + 0.5 - this.y) / this.scale)));
    let i = 0;
    for (let y = top; y < bottom; y++) {
      const row = rowAt(y) * width;
      const below = rowAt(y + 1) * width;
      for (let x = 0; x < right - left; x++) {
        const value = data[row + columns[x]];
        const inside = value >= 128;
        const border =
          inside !== data[row + columns[x + 1]] >= 128 || inside !== data[below + columns[x]] >= 128;
        pixels[i++] = border ? edge : shades[value];
      }
    }
    context.putImageData(picture, left, top);
  }

  drawMarks() {
    const context = this.marks.getContext("2d");
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    if (!this.mask) return;
    const thin = this.ratio;
    const stroke = (draw) => {
      for (const [style, width] of [["rgba(0,0,0,.75)", 3], ["#fff", 1.2]]) {
        context.strokeStyle = style;
        context.lineWidth = width * thin;
        context.beginPath();
        draw();
        context.stroke();
      }
    };
    const box = this.drag?.boxed && this.cursor ? [this.drag.x, this.drag.y, ...this.cursor] : this.box;
    if (box) {
      const [x0, y0, x1, y1] = box.map((v, i) => v * this.scale + (i % 2 ? this.y : this.x));
      stroke(() => context.rect(x0, y0, x1 - x0, y1 - y0));
    }
    for (const [x, y, inside] of this.clicks) {
      const [cx, cy] = [x * this.scale + this.x, y * this.scale + this.y];
      context.fillStyle = inside ? "#0a7d3c" : "#c4232c";
      context.beginPath();
      context.arc(cx, cy, 7 * thin, 0, 2 * Math.PI);
      context.fill();
      stroke(() => {
        context.arc(cx, cy, 7 * thin, 0, 2 * Math.PI);
        context.moveTo(cx - 4 * thin, cy);
        context.lineTo(cx + 4 * thin, cy);
        if (inside) context.moveTo(cx, cy - 4 * thin);
        if (inside) context.lineTo(cx, cy + 4 * thin);
      });
    }
    const brush = (this.tool === "paint" || this.tool === "erase") && !this.holdsSpace;
    if (this.cursor && brush) {
      const [cx, cy] = [this.cursor[0] * this.scale + this.x, this.cursor[1] * this.scale + this.y];
      stroke(() => context.arc(cx, cy, this.radius * this.scale, 0, 2 * Math.PI));
    }
  }
}
