// A row of texts that change often. NiceGUI draws its whole tree anew for an element that is updated; what is said here
// touches the row alone.
export default {
  template: `<div><span v-for="(one, number) in said" :key="number" :class="{ soft: number === 1 }">{{ one }}</span></div>`,
  props: { words: Array },
  data() {
    return { said: this.words };
  },
  methods: {
    say(words) {
      this.said = words;
    },
  },
};
