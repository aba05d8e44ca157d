// One image, large: its crop, the point that it is cropped around, and a loss mask painted on it.
export default {
  template: `
    <div class="painter">
      <div class="painter-tools" role="toolbar" aria-label="What a click on the image does">
        <button v-for="one in tools" type="button" class="tool" :aria-pressed="tool === one.name"
                @click="tool = one.name">{{ one.title }}</button>
        <label v-if="paints" class="painter-size">size
          <input type="range" min="4" max="200" v-model.number="size" aria-label="Brush size"></label>
        <template v-if="paints">
          <button type="button" class="tool" :disabled="!steps.length" @click="stepBack">Step back</button>
          <button type="button" class="tool" @click="all(255)">All white</button>
          <button type="button" class="tool" @click="all(0)">All black</button>
          <button type="button" class="tool strong" :disabled="!dirty" @click="save">Save mask</button>
        </template>
        <button v-if="tool === 'focus' && point" type="button" class="tool" @click="setPoint(null)">No focus</button>
      </div>
      <div class="painter-image" ref="frame" :class="tool" tabindex="0" role="application" :aria-label="help"
           :style="{ aspectRatio: width / height, maxWidth: 'min(100%, calc(62vh * ' + width / height + '))' }"
           @pointerdown="down" @pointermove="drag" @pointerup="up" @pointercancel="up" @keydown="key">
        <img :src="image" alt="" draggable="false" @load="ready">
        <canvas ref="mask" v-show="paints"></canvas>
        <span v-if="crop && !paints" class="image-crop" :style="cropStyle"></span>
        <span v-if="point && !paints" class="image-focus" :style="pointStyle"></span>
        <span v-if="box" class="painter-box" :style="boxStyle"></span>
        <span v-if="paints && cursor" class="painter-cursor" :style="cursorStyle"></span>
      </div>
      <p class="soft small" aria-live="polite">{{ said || help }}</p>
    </div>`,
  props: { image: String, mask: String, crop: Array, focus: Array, hasMask: Boolean },
  data: () => ({ tool: "look", size: 40, width: 1, height: 1, point: null, steps: [], dirty: false, said: "", box: null,
    cursor: null, at: null, tools: [{ name: "look", title: "Look" }, { name: "focus", title: "Crop focus" },
      { name: "brush", title: "Brush" }, { name: "eraser", title: "Eraser" }, { name: "rectangle", title: "Rectangle" }] }),
  computed: {
    paints() { return ["brush", "eraser", "rectangle"].includes(this.tool); },
    help() {
      return { look: "The frame is what the crop leaves.",
        focus: "Click where the crop is to lie; or use the arrow keys, and Enter to save.",
        brush: "White is learned. Paint with the pointer; or use the arrow keys to move and the space bar to paint.",
        eraser: "Black is not learned.", rectangle: "Drag a rectangle that is learned." }[this.tool];
    },
    cropStyle() {
      return Object.fromEntries(["left", "top", "width", "height"].map((side, n) => [side, 100 * this.crop[n] + "%"]));
    },
    pointStyle() { return { left: 100 * this.point[0] + "%", top: 100 * this.point[1] + "%" }; },
    boxStyle() {
      const [x, y, w, h] = this.box;
      return { left: 100 * x + "%", top: 100 * y + "%", width: 100 * w + "%", height: 100 * h + "%" };
    },
    cursorStyle() {
      return { left: 100 * this.cursor[0] + "%", top: 100 * this.cursor[1] + "%",
        width: 100 * this.size / this.width + "%", height: 100 * this.size / this.height + "%" };
    },
  },
  watch: {
    focus: { immediate: true, handler(value) { this.point = value; } },
    image() { this.tool = "look"; this.steps = []; this.dirty = false; this.said = ""; },
  },
  methods: {
    async ready(event) {
      const side = 1024 / Math.max(event.target.naturalWidth, event.target.naturalHeight);
      this.width = Math.max(1, Math.round(event.target.naturalWidth * Math.min(1, side)));
      this.height = Math.max(1, Math.round(event.target.naturalHeight * Math.min(1, side)));
      const canvas = this.$refs.mask;
      canvas.width = this.width;
      canvas.height = this.height;
      this.pen = canvas.getContext("2d", { willReadFrequently: true });
      this.pen.fillStyle = "black";
      this.pen.fillRect(0, 0, this.width, this.height);
      if (this.hasMask) {
        const old = new Image();
        old.onload = () => this.pen.drawImage(old, 0, 0, this.width, this.height);
        old.src = this.mask + "?" + Date.now();
      }
    },
    place(event) {
      const box = this.$refs.frame.getBoundingClientRect();
      const share = (value) => Math.min(1, Math.max(0, value));
      return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
    },
    down(event) {
      if (this.tool === "look" || event.button > 0) return;
      this.at = this.place(event);
      if (this.tool === "focus") { this.setPoint(this.at); this.at = null; return; }
      event.preventDefault();
      this.$refs.frame.setPointerCapture(event.pointerId);
      this.keep();
      if (this.tool !== "rectangle") this.stroke(this.at, this.at);
    },
    drag(event) {
      this.cursor = this.place(event);
      if (!this.at) return;
      if (this.tool === "rectangle") this.box = this.corners(this.at, this.cursor);
      else { this.stroke(this.at, this.cursor); this.at = this.cursor; }
    },
    up() {
      if (this.box) {
        const [x, y, w, h] = this.box;
        this.pen.fillStyle = "white";
        this.pen.fillRect(x * this.width, y * this.height, w * this.width, h * this.height);
        this.dirty = true;
      }
      this.box = this.at = null;
    },
    corners: (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])],
    stroke(from, to) {
      const pen = this.pen;
      pen.strokeStyle = pen.fillStyle = this.tool === "eraser" ? "black" : "white";
      pen.lineWidth = this.size;
      pen.lineCap = "round";
      pen.beginPath();
      pen.moveTo(from[0] * this.width, from[1] * this.height);
      pen.lineTo(to[0] * this.width + 0.01, to[1] * this.height);
      pen.stroke();
      this.dirty = true;
    },
    keep() {
      this.steps.push(Object.freeze(this.pen.getImageData(0, 0, this.width, this.height)));
      if (this.steps.length > 20) this.steps.shift();
    },
    stepBack() { this.pen.putImageData(this.steps.pop(), 0, 0); this.dirty = true; },
    all(level) {
      this.keep();
      this.pen.fillStyle = level ? "white" : "black";
      this.pen.fillRect(0, 0, this.width, this.height);
      this.dirty = true;
    },
    key(event) {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (this.tool === "look") return;
      const now = (this.tool === "focus" ? this.point : this.cursor) || [0.5, 0.5];
      if (event.key in moves) {
        event.preventDefault();
        const next = now.map((one, n) => Math.min(1, Math.max(0, one + 0.02 * moves[event.key][n])));
        if (this.tool === "focus") this.point = next;
        else this.cursor = next;
      } else if (event.key === "Enter" && this.tool === "focus") this.setPoint(now);
      else if (event.key === " " && this.paints) { event.preventDefault(); this.keep(); this.stroke(now, now); }
    },
    setPoint(point) { this.point = point; this.$emit("focus", { point }); },
    save() {
      this.$refs.mask.toBlob(async (blob) => {
        try {
          const answer = await fetch(this.mask, { method: "PUT", body: blob });
          const found = await answer.json();
          this.said = answer.ok ? `Saved as ${found.mask}.` : found.error;
          if (answer.ok) { this.dirty = false; this.$emit("saved", {}); }
        } catch (error) { this.said = "The page cannot be reached; is it still running?"; }
      }, "image/png");
    },
  },
};
