// One sound at a time; a picture is as long as its sound, shows where it is, and a click into it plays from there.
const players = [...document.querySelectorAll("audio")];
for (const audio of players) {
  const picture = audio.parentElement.querySelector(".spectrogram"), line = picture.querySelector("i");
  const seconds = Number(audio.dataset.seconds);
  const follow = () => {
    line.style.width = 100 * Math.min(1, audio.currentTime / seconds) + "%";
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of players) if (other !== audio) other.pause();
    picture.classList.add("on");
    follow();
  });
  audio.addEventListener("seeked", follow);
  audio.addEventListener("ended", () => picture.classList.remove("on"));
  picture.addEventListener("click", event => {
    if (!event.detail && !audio.paused) return audio.pause();
    const box = picture.getBoundingClientRect();
    const from = event.detail ? (event.clientX - box.left) / box.width * seconds : 0;
    const start = () => { audio.currentTime = from; audio.play(); };
    if (audio.readyState) start();
    else { audio.addEventListener("loadedmetadata", start, { once: true }); audio.load(); }
  });
}
