//! Progress shown on standard error: a bar on a terminal, otherwise a line every two seconds,
//! nothing when quiet.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Output;
use crate::progress::Progress;
use crate::text::human_bytes;

/// Interval of progress lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// First words of the note that no bytes arrive.
const SILENCE: &str = "nothing has come for";

/// Progress of a command. Cheap to update from many threads.
#[derive(Debug)]
pub struct ShownProgress {
    form: Form,
}

#[derive(Debug)]
enum Form {
    None,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

#[derive(Debug)]
struct Lines {
    label: String,
    phase: String,
    done: u64,
    total: u64,
    begun: Instant,
    printed: Instant,
}

impl Lines {
    fn print(&mut self, now: Instant) {
        self.printed = now;
        eprintln!("{}", self.line(now.duration_since(self.begun)));
    }

    fn line(&self, since: Duration) -> String {
        let percent = if self.total == 0 { 100.0 } else { self.done as f64 * 100.0 / self.total as f64 };
        let rate = self.done as f64 / since.as_secs_f64().max(0.001);
        let Self { label, phase, .. } = self;
        let (done, total) = (human_bytes(self.done), human_bytes(self.total));
        let phase = if phase.is_empty() { String::new() } else { format!(" {phase}") };
        format!("{label}:{phase} {done} of {total} ({percent:.0} %), {}/s", human_bytes(rate as u64))
    }
}

impl ShownProgress {
    /// Chooses the form that suits standard error.
    pub fn new(output: Output) -> Self {
        let form = if output.is_quiet() {
            Form::None
        } else if output.has_terminal() {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} {msg}",
            )
            .expect("the template is constant and tested");
            Form::Bar(bar.with_style(style.progress_chars("=> ")))
        } else {
            let now = Instant::now();
            let (label, phase) = (String::new(), String::new());
            Form::Lines(Mutex::new(Lines { label, phase, done: 0, total: 0, begun: now, printed: now }))
        };
        Self { form }
    }
}

impl Progress for ShownProgress {
    fn begin(&self, bytes: u64, label: &str) {
        match &self.form {
            Form::None => {}
            Form::Bar(bar) => {
                bar.reset();
                bar.set_length(bytes);
                bar.set_prefix(label.to_owned());
            }
            Form::Lines(lines) => {
                let now = Instant::now();
                let (label, phase) = (label.to_owned(), String::new());
                *lock(lines) = Lines { label, phase, done: 0, total: bytes, begun: now, printed: now };
            }
        }
    }

    fn phase(&self, phase: &str) {
        match &self.form {
            Form::None => {}
            Form::Bar(bar) => bar.set_message(phase.to_owned()),
            Form::Lines(lines) => phase.clone_into(&mut lock(lines).phase),
        }
    }

    fn add(&self, bytes: u64) {
        match &self.form {
            Form::None => {}
            Form::Bar(bar) => bar.inc(bytes),
            Form::Lines(lines) => {
                let mut lines = lock(lines);
                lines.done += bytes;
                let now = Instant::now();
                if now.duration_since(lines.printed) >= LINE_EVERY {
                    lines.print(now);
                }
            }
        }
    }

    fn done(&self) -> Option<u64> {
        match &self.form {
            Form::None => None,
            Form::Bar(bar) => Some(bar.position()),
            Form::Lines(lines) => Some(lock(lines).done),
        }
    }

    fn silent(&self, quiet: Duration) {
        let said = format!("{SILENCE} {} s; still trying", quiet.as_secs());
        match &self.form {
            Form::None => {}
            Form::Bar(bar) if quiet.is_zero() => {
                if bar.message().starts_with(SILENCE) {
                    bar.set_message("");
                }
            }
            Form::Bar(bar) => bar.set_message(said),
            Form::Lines(_) if quiet.is_zero() => {}
            Form::Lines(lines) => {
                let lines = lock(lines);
                let (done, total) = (human_bytes(lines.done), human_bytes(lines.total));
                eprintln!("{}: {done} of {total}, {said}", lines.label);
            }
        }
    }

    /// Removes the bar before the result is printed.
    fn end(&self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ShownProgress {
    fn drop(&mut self) {
        // An error may be printed next and must not run into a bar.
        self.end();
    }
}

fn lock(lines: &Mutex<Lines>) -> std::sync::MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use crate::progress::watch_for_silence;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_reported_until_bytes_arrive() {
        let bar = ProgressBar::hidden();
        let progress = ShownProgress { form: Form::Bar(bar.clone()) };
        let (watch, steps) = (watch_for_silence(&progress), async {
            progress.add(1);
            tokio::time::sleep(Duration::from_secs(11)).await;
            assert_eq!(bar.message(), "");
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(bar.message(), "nothing has come for 20 s; still trying");
            progress.add(1);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(bar.message(), "");
        });
        tokio::select! {
            biased;
            never = watch => match never {},
            () = steps => {}
        }
    }

    #[test]
    fn a_plain_line_says_how_far_and_how_fast() {
        let now = Instant::now();
        let (label, phase) = ("os 1.2".to_owned(), "checking".to_owned());
        let lines = Lines { label, phase, done: 250_000_000, total: 1_000_000_000, begun: now, printed: now };
        let text = lines.line(Duration::from_secs(2));
        assert_eq!(text, "os 1.2: checking 250.0 MB of 1.0 GB (25 %), 125.0 MB/s");
    }

    #[test]
    fn the_bar_template_is_valid_and_quiet_output_has_none() {
        let style =
            "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} {msg}";
        assert!(ProgressStyle::with_template(style).is_ok());
        assert!(matches!(ShownProgress::new(Output::new(false, true)).form, Form::None));
    }
}
