// The video, its buttons, and what is said where a browser can't play it.

/**
 * Plays the store's current video. Events: "time" whenever the time has changed, "duration" when it is known.
 * Without a video that plays it keeps a time all the same, so that the timeline can be looked through.
 */
class Player extends EventTarget {
  constructor(store, looks, byId) {
    super();
    Object.assign(this, { store, looks, video: byId("video"), message: byId("message"), text: byId("message-text") });
    Object.assign(this, { stage: byId("stage"), now: byId("now"), button: byId("play"), clock: byId("clock") });
    Object.assign(this, { speed: byId("speed"), mute: byId("mute"), full: byId("full") });
    this.choose = byId("choose");
    this.chooseFile = byId("choose-file");
    this._time = 0;
    this.chosen = null;
    this._listen();
  }

  get time() {
    return this.playable && this._pending === null ? this.video.currentTime : this._time;
  }

  /** Load the store's current video and stop at its start. */
  load() {
    const { url, duration } = this.store.video ?? {};
    this._forgetChosen();
    this.duration = duration ?? lastEnd(this.store);
    this._open(url ?? null);
  }

  /** Go to a time. play: start playing there; else go on as before. */
  seek(seconds, play = false) {
    this._time = Math.min(Math.max(seconds, 0), this.duration);
    // Before its first frame is known a video may forget where it was sent.
    if (this.video.readyState >= HTMLMediaElement.HAVE_METADATA) this.video.currentTime = this._time;
    else this._pending = this._time;
    if (play) this.play();
    this.refresh();
  }

  play() {
    // A refusal, as by another load, needs no words: the button shows that nothing plays.
    if (this.playable) this.video.play().catch(() => {});
  }

  toggle() {
    if (this.video.paused) this.play();
    else this.video.pause();
  }

  _open(url) {
    this.playable = url !== null;
    this._pending = null;
    this._time = 0;
    this.message.hidden = true;
    if (url === null) {
      this.video.removeAttribute("src");
      this._fail(this.store.video ? "No file is known for this video." : "There are no videos on this page.");
    } else {
      this.video.src = url;
      this.video.playbackRate = Number(this.speed.value);
    }
    this.refresh();
    this._showState();
  }

  /** Say what is wrong in place of the picture. */
  _fail(text) {
    this.playable = false;
    this._time = this._pending ?? this._time;
    this._pending = null;
    this.text.textContent = this.store.video ? `${text} The timeline below works all the same.` : text;
    this.choose.hidden = !this.store.video;
    this.message.hidden = false;
    this._showState();
  }

  _failed() {
    const file = this.chosen ?? this.store.video?.file ?? "the file";
    const decoding = this.video.error?.code === MediaError.MEDIA_ERR_DECODE;
    this._fail(
      decoding
        ? `${file} is damaged, or in a form that this browser can't decode.`
        : `This browser can't play ${file}: it was moved, is damaged, or in a form that the browser doesn't know. ` +
            "Choose where it is now, or make an MP4 with H.264 of it.",
    );
  }

  _loaded() {
    // A browser may play the sound of a file whose pictures it doesn't know.
    if (!this.video.videoWidth) return this._fail("This browser knows the sound of this file, but not its pictures.");
    if (this._pending !== null) this.video.currentTime = this._pending;
    this._pending = null;
    if (this.store.video.duration === null && Number.isFinite(this.video.duration)) {
      this.duration = Math.max(this.video.duration, lastEnd(this.store));
    }
    this.dispatchEvent(new Event("duration"));
    this.refresh();
    this._showState();
  }

  /** Show the time, and what is detected then. */
  refresh() {
    this.clock.textContent = `${clock(this.time)} / ${clock(this.duration)}`;
    this._showNow();
    this.dispatchEvent(new Event("time"));
  }

  /** Show over the picture what is detected at this moment. */
  _showNow() {
    const time = this.time;
    const here = this.store.shown.filter((one) => one.start <= time && time < one.end);
    const top = here.sort((a, b) => (b.score ?? 1) - (a.score ?? 1)).slice(0, 4);
    // Only when it changes: this runs for every frame.
    if (this._top?.length === top.length && top.every((one, index) => one === this._top[index])) return;
    this._top = top;
    this.now.replaceChildren(
      ...top.map((segment) => {
        const chip = document.createElement("span");
        const name = document.createElement("bdi");
        name.textContent = this.store.classes[segment.label];
        const score = document.createElement("b");
        score.textContent = segment.score === null ? "" : scoreText(segment.score);
        chip.append(swatch(segment.label), name, score);
        return chip;
      }),
    );
  }

  _showState() {
    const playing = this.playable && !this.video.paused;
    this.button.disabled = !this.playable;
    this.button.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.button.querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
    this.mute.setAttribute("aria-pressed", String(this.video.muted));
    this.mute.querySelector("use").setAttribute("href", this.video.muted ? "#icon-muted" : "#icon-sound");
    if (playing) this._follow();
  }

  /** Tell the time with every frame that is shown while the video plays. */
  _follow() {
    this._next ??= requestAnimationFrame(() => {
      this._next = null;
      this.refresh();
      if (!this.video.paused) this._follow();
    });
  }

  _listen() {
    const { video } = this;
    video.addEventListener("error", () => video.hasAttribute("src") && this._failed());
    video.addEventListener("loadedmetadata", () => this._loaded());
    for (const name of ["play", "pause", "ended", "volumechange"]) {
      video.addEventListener(name, () => this._showState());
    }
    for (const name of ["timeupdate", "seeked"]) video.addEventListener(name, () => this.refresh());
    video.addEventListener("click", () => this.toggle());
    this.button.addEventListener("click", () => this.toggle());
    this.mute.addEventListener("click", () => (video.muted = !video.muted));
    this.speed.addEventListener("change", () => (video.playbackRate = Number(this.speed.value)));
    // The stage and not the video: what is detected is shown in full screen too.
    this.full.hidden = !this.stage.requestFullscreen;
    this.full.addEventListener("click", () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.stage.requestFullscreen().catch(() => {});
    });
    this.chooseFile.addEventListener("change", () => this._useChosen());
    this.choose.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") this.chooseFile.click();
    });
  }

  _useChosen() {
    const [file] = this.chooseFile.files;
    if (!file) return;
    const time = this._time;
    this._forgetChosen();
    this.chosen = file.name;
    this._address = URL.createObjectURL(file);
    this._open(this._address);
    this.seek(time);
  }

  _forgetChosen() {
    if (this._address) URL.revokeObjectURL(this._address);
    this._address = this.chosen = null;
    this.chooseFile.value = "";
  }
}

/** End of the last segment in seconds: a video isn't shorter than what is known of it. */
function lastEnd(store) {
  return [...store.all, ...store.truth].reduce((last, one) => Math.max(last, one.end), 0);
}
