// Has the page fetched again when the origin says that something has changed. Pages work without.
"use strict";
const news = new EventSource("/ui/events");
let waiting = false;
const show = () => {
  if (document.hidden) {
    waiting = true;
    return;
  }
  waiting = false;
  document.body.dispatchEvent(new Event("live"));
};
news.addEventListener("change", show);
document.addEventListener("visibilitychange", () => {
  if (waiting) show();
});
