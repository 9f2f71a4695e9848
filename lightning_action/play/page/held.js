// What is held: keys, buttons of the page, a gamepad, and a pull of the mouse or a finger; all of it let go with the focus.
const DEAD_ZONE = 0.15, STEP = 0.05, PULL = 0.3, MAX_PENDING = 255;
const rounded = (share) => Math.min(1, Math.round(share / STEP) * STEP);
const isTyping = (target) => target.closest?.("input, button, summary") && !target.closest("#pad");

export class Held {
  constructor(controls, pad, canvas, tell) {
    this.controls = new Map(controls.flatMap(({ inputs }, number) => inputs.map((input) => [input, number])));
    this.tell = tell;
    this.held = new Map(); // input -> how far, in the order in which they were taken hold of
    this.change = 0;
    this.said = "[]";
    this.pending = []; // changes that no block has answered yet
    this.ending = new AbortController();
    this.on = (target, name, listener) => target.addEventListener(name, listener, { signal: this.ending.signal });
    this.listenToKeys();
    this.listenToPull(canvas);
    this.showPad(controls, pad);
    this.on(window, "gamepadconnected", () => this.pollGamepads());
    for (const [target, name] of [[window, "blur"], [window, "pagehide"], [document, "visibilitychange"]]) {
      this.on(target, name, () => this.forget());
    }
    this.pollGamepads(); // one that is there already is not announced again
  }

  release() {
    this.ending.abort();
  }

  forget(kind = "") {
    if ("mouse:".startsWith(kind)) this.pulledFrom = undefined;
    for (const input of [...this.held.keys()]) if (input.startsWith(kind)) this.held.delete(input);
    this.say(performance.now());
  }

  // How far an input is held from now on; 0 lets it go.
  hold(input, share, time = performance.now()) {
    if (share > 0) this.held.set(input, rounded(share));
    else this.held.delete(input);
    this.say(time);
  }

  say(time) {
    const pairs = new Map();
    for (const [input, share] of this.held) {
      const number = input.startsWith("pad:") ? parseInt(input.slice(4)) : this.controls.get(input);
      if (number !== undefined) pairs.set(number, Math.max(share, pairs.get(number) ?? 0));
    }
    const now = JSON.stringify([...pairs]);
    for (const button of this.buttons ?? []) button.classList.toggle("held", pairs.has(Number(button.dataset.number)));
    if (now === this.said) return;
    this.said = now;
    this.change += 1;
    this.pending = [...this.pending.slice(-MAX_PENDING), { change: this.change, time }];
    this.tell(this.change, [...pairs].slice(-32));
  }

  // Milliseconds since the oldest change that a block answers; nothing where it answers none.
  answered(change) {
    const first = this.pending.find((each) => each.change <= change);
    this.pending = this.pending.filter((each) => each.change > change);
    return first && Math.max(0, performance.now() - first.time);
  }

  listenToKeys() {
    this.on(document, "keydown", (event) => {
      const input = `key:${event.code}`;
      if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey || !this.controls.has(input)) return;
      event.preventDefault();
      if (!event.repeat) this.hold(input, 1, event.timeStamp);
    });
    this.on(document, "keyup", (event) => {
      this.hold(`key:${event.code}`, 0, event.timeStamp);
      if (event.key === "Meta") this.forget("key:"); // macOS does not tell which keys were let go under it
    });
  }

  listenToPull(canvas) {
    if (!["x+", "x-", "y+", "y-"].some((side) => this.controls.has(`mouse:${side}`))) return;
    const pull = (axis, value) => {
      this.held.delete(`mouse:${axis}${value > 0 ? "-" : "+"}`);
      this.hold(`mouse:${axis}${value > 0 ? "+" : "-"}`, Math.abs(value) < DEAD_ZONE ? 0 : Math.min(1, Math.abs(value)));
    };
    const isPulling = (event) => event.pointerId === this.pulledFrom?.pointerId;
    this.on(canvas, "pointerdown", (event) => {
      if (event.button !== 0 || this.pulledFrom) return;
      canvas.setPointerCapture(event.pointerId);
      this.pulledFrom = event;
    });
    this.on(canvas, "pointermove", (event) => {
      if (!isPulling(event)) return;
      if (!(event.buttons & 1)) return this.forget("mouse:");
      pull("x", (event.clientX - this.pulledFrom.clientX) / (PULL * canvas.clientWidth));
      pull("y", (event.clientY - this.pulledFrom.clientY) / (PULL * canvas.clientHeight));
    });
    this.on(canvas, "lostpointercapture", (event) => { if (isPulling(event)) this.forget("mouse:"); });
  }

  showPad(controls, pad) {
    const labelled = controls.map((control, number) => ({ ...control, number })).filter(({ label }) => label);
    const isCross = ["→", "←", "↓", "↑"].every((arrow) => labelled.some(({ label }) => label === arrow));
    const cross = this.group("cross", isCross ? labelled.filter(({ label }) => "→←↓↑".includes(label)) : []);
    const more = this.group("more", labelled.filter(({ label }) => !isCross || !"→←↓↑".includes(label)));
    pad.replaceChildren(...[cross, more].filter((group) => group.childElementCount));
    this.buttons = [...pad.querySelectorAll("button")];
    for (const button of this.buttons) this.listenToButton(button);
  }

  group(name, controls) {
    const group = document.createElement("div");
    group.className = name;
    group.append(...controls.map((control) => this.button(control)));
    return group;
  }

  button({ label, inputs, number }) {
    const button = document.createElement("button");
    const key = inputs.find((input) => input.startsWith("key:"))?.slice(4).replace(/^(Key|Digit)/, "");
    button.dataset.number = number;
    button.dataset.side = 1 + "→←↓↑".indexOf(label);
    button.textContent = label;
    button.title = key ?? label;
    if (button.dataset.side === "0" && key) {
      const hint = document.createElement("kbd");
      hint.textContent = key;
      button.append(hint);
    }
    return button;
  }

  listenToButton(button) {
    const input = `pad:${button.dataset.number}`;
    this.on(button, "pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.hold(input, 1, event.timeStamp);
    });
    this.on(button, "lostpointercapture", (event) => this.hold(input, 0, event.timeStamp));
    const byKey = `${input}:Space`; // a finger that holds the button does not lose it with the focus
    this.on(button, "keydown", ({ code, repeat }) => { if (code === "Space" && !repeat) this.hold(byKey, 1); });
    this.on(button, "keyup", ({ code }) => { if (code === "Space") this.hold(byKey, 0); });
    this.on(button, "blur", () => this.hold(byKey, 0));
    this.on(button, "contextmenu", (event) => event.preventDefault());
  }

  pollGamepads() {
    cancelAnimationFrame(this.polling); // one loop, however many gamepads there are
    if (this.ending.signal.aborted) return;
    const gamepad = navigator.getGamepads?.().find((each) => each);
    if (!gamepad) {
      for (const input of [...this.held.keys()]) if (/^(stick|button):/.test(input)) this.hold(input, 0);
      return;
    }
    this.polling = requestAnimationFrame(() => this.pollGamepads());
    if (!document.hasFocus()) return;
    gamepad.axes.slice(0, 8).forEach((value, number) => {
      const share = Math.abs(value) < DEAD_ZONE ? 0 : Math.abs(value);
      this.hold(`stick:${number}${value > 0 ? "-" : "+"}`, 0);
      this.hold(`stick:${number}${value > 0 ? "+" : "-"}`, share);
    });
    gamepad.buttons.slice(0, 20).forEach(({ pressed }, number) => this.hold(`button:${number}`, Number(pressed)));
  }
}
