// Has the page fetched again when the origin says that something has changed. Pages work without.
"use strict";
// Least time between two fetches, in milliseconds, and times that a fetch took: a page that costs much is fetched less.
const LEAST = 2000;
const SHARE = 20;

let news = null;
let timer = null;
let ended = 0;
let pause = LEAST;

// Fetches the page, once the last time is long enough ago. News that come meanwhile are in it.
const show = () => {
  if (timer !== null) return;
  timer = setTimeout(() => {
    timer = null;
    const began = performance.now();
    document.body.addEventListener("htmx:after:swap", () => {
      ended = performance.now();
      pause = Math.max(LEAST, SHARE * (ended - began));
    }, { once: true });
    document.body.dispatchEvent(new Event("live"));
  }, Math.max(0, ended + pause - performance.now()));
};

// A page that nobody looks at holds no connection: a browser has few for one host.
const listen = (again) => {
  if (document.hidden) return;
  news = new EventSource("/ui/events");
  news.addEventListener("open", () => {
    // What changed while nobody listened.
    if (again) show();
    again = true;
  });
  news.addEventListener("change", show);
  news.addEventListener("error", () => {
    // The session has ended, and the page leads to the form for signing in.
    if (news !== null && news.readyState === EventSource.CLOSED) show();
  });
};

document.addEventListener("visibilitychange", () => {
  if (news !== null) news.close();
  news = null;
  listen(true);
});
listen(false);
