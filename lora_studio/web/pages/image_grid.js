// A grid of thousands of images: only the rows in view are in the document, and of the images those blocks are asked
// for that come into view. Every text is set as text by Vue.
export default {
  template: `
    <div class="image-grid" ref="box" role="grid" :aria-rowcount="rowCount" aria-label="Images"
         :style="{ height: rowCount * rowHeight + 'px' }" @keydown="move">
      <div v-for="row in inView" :key="row.number" role="row" :aria-rowindex="row.number + 1" class="image-row"
           :style="{ top: row.number * rowHeight + 'px', gridTemplateColumns: 'repeat(' + columns + ', minmax(0, 1fr))' }">
        <div v-for="one in row.images" :key="one.key" role="gridcell" class="image-card"
             :class="{ excluded: one.excluded, open: one.key === chosen }">
          <button type="button" class="image-open" :data-at="one.at" :tabindex="one.at === focused ? 0 : -1"
                  :aria-label="one.label" @click="open(one)" @focus="focused = one.at">
            <span class="image-frame" :style="frame(one)">
              <img v-if="!broken[one.key]" :src="address + one.key + '/thumbnail.jpg'" alt="" loading="lazy"
                   decoding="async" @load="loaded(one, $event)" @error="broken[one.key] = true">
              <span v-else class="image-broken">cannot be shown</span>
              <span v-if="one.crop" class="image-crop" :style="crop(one)"></span>
              <span v-if="one.focus" class="image-focus"
                    :style="{ left: 100 * one.focus[0] + '%', top: 100 * one.focus[1] + '%' }"></span>
            </span>
          </button>
          <div class="image-facts"><bdi class="image-name" :title="one.name">{{ one.name }}</bdi>
            <span>{{ one.facts || "\u00a0" }}</span></div>
          <div class="image-badges">
            <span v-for="badge in one.badges.slice(0, 2)" class="pill" :class="badge.severity"
                  :title="badge.detail">{{ badge.title }}</span>
            <span v-if="one.badges.length > 2" class="pill">+{{ one.badges.length - 2 }}</span>
            <span v-if="one.mask" class="pill">mask</span>
          </div>
          <textarea class="image-caption" :value="drafts[one.key] ?? one.caption" :aria-label="'Caption of ' + one.name"
                    tabindex="-1" placeholder="no caption" :readonly="one.unreadable"
                    @input="drafts[one.key] = $event.target.value" @change="edited(one, $event)"
                    @keydown.stop="typed(one, $event)"></textarea>
        </div>
      </div>
    </div>`,
  props: { rows: Array, count: Number, block: Number, query: String, version: Number, address: String },
  data: () => ({ columns: 4, first: 0, last: 6, focused: 0, chosen: "", ratios: {}, broken: {}, patches: {}, blocks: {},
    drafts: {} }),  // what is being typed, which nothing that is drawn again may take away
  computed: {
    rowHeight: () => 316,
    rowCount() { return Math.ceil(this.count / this.columns); },
    inView() {
      const found = [];
      for (let number = this.first; number < Math.min(this.last, this.rowCount); number++) {
        const images = [];
        for (let at = number * this.columns; at < Math.min((number + 1) * this.columns, this.count); at++) {
          const one = this.blocks[Math.floor(at / this.block)]?.rows[at % this.block];
          if (one) images.push({ ...one, ...this.patches[one.key], at });
        }
        found.push({ number, images });
      }
      return found;
    },
  },
  created() { this.take(); },
  mounted() {
    this.look = this.look.bind(this);
    this.watcher = new ResizeObserver(this.look);
    this.watcher.observe(this.$refs.box);
    for (const one of ["scroll", "resize"]) window.addEventListener(one, this.look, { passive: true });
    this.look();
  },
  unmounted() {
    this.watcher.disconnect();
    for (const one of ["scroll", "resize"]) window.removeEventListener(one, this.look);
  },
  watch: {
    version() {
      if (this.query !== this.asked) { this.blocks = {}; this.focused = 0; }
      this.take();
      this.$nextTick(this.look);
    },
  },
  methods: {
    take() {  // the first block came along; older ones stay until they are asked for again
      this.asked = this.query;
      this.patches = {};
      this.blocks[0] = { version: this.version, rows: this.rows };
    },
    async ask(number) {
      const version = this.version;
      if (this.blocks[number]?.version === version) return;
      this.blocks[number] = { version, rows: this.blocks[number]?.rows || [] };
      const place = `${this.address}images?first=${number * this.block}&count=${this.block}&${this.query}`;
      const answer = await fetch(place).then((one) => one.ok ? one.json() : null, () => null);
      if (answer && version === this.version) this.blocks[number] = { version, rows: answer.images };
      else if (version === this.version) this.blocks[number].version = -1;  // asked for again by the next look
    },
    look() {
      const box = this.$refs.box.getBoundingClientRect();
      this.columns = Math.max(1, Math.floor((box.width + 12) / 222));
      this.first = Math.max(0, Math.floor(-box.top / this.rowHeight) - 2);
      this.last = Math.ceil((window.innerHeight - box.top) / this.rowHeight) + 2;
      const most = Math.min(this.last * this.columns, this.count) - 1;
      for (let at = Math.floor(this.first * this.columns / this.block); at <= Math.floor(most / this.block); at++) this.ask(at);
    },
    frame(one) {
      const ratio = one.ratio || this.ratios[one.key] || 1;
      return ratio >= 1 ? { width: "100%", aspectRatio: ratio } : { height: "100%", aspectRatio: ratio };
    },
    crop: (one) => Object.fromEntries(
      ["left", "top", "width", "height"].map((side, at) => [side, 100 * one.crop[at] + "%"])),
    loaded(one, event) { this.ratios[one.key] = event.target.naturalWidth / event.target.naturalHeight; },
    open(one) { this.chosen = one.key; this.focused = one.at; this.$emit("open", { key: one.key }); },
    edited(one, event) {
      const caption = event.target.value;
      this.patches[one.key] = { ...this.patches[one.key], caption };
      delete this.drafts[one.key];
      this.$emit("caption", { key: one.key, text: caption });
    },
    typed(one, event) {
      if (event.key === "Escape") { delete this.drafts[one.key]; event.target.value = one.caption; this.focusCard(one.at); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.target.blur(); this.focusCard(one.at); }
    },
    patch(key, values) { this.patches[key] = { ...this.patches[key], ...values }; delete this.broken[key]; },
    move(event) {
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns,
        PageUp: -3 * this.columns, PageDown: 3 * this.columns, Home: -1e9, End: 1e9 };
      if (event.key === "F2") {
        event.preventDefault();
        event.target.closest(".image-card")?.querySelector("textarea")?.focus();
      } else if (event.key in steps) {
        event.preventDefault();
        this.focusCard(Math.min(this.count - 1, Math.max(0, this.focused + steps[event.key])));
      }
    },
    focusCard(at) {
      this.focused = at;
      const top = this.$refs.box.getBoundingClientRect().top + Math.floor(at / this.columns) * this.rowHeight;
      if (top < 60 || top + this.rowHeight > window.innerHeight) window.scrollBy(0, top - 120);
      this.look();
      setTimeout(() => this.$refs.box.querySelector(`[data-at="${at}"]`)?.focus({ preventScroll: true }), 60);
    },
  },
};
