//! Files that make the apt of a machine use the proxy of its agent: a line of configuration, and a
//! program that apt asks for the proxy.
//!
//! The program answers DIRECT unless the agent says at once that it takes the host. So apt works
//! when the agent is stopped, frozen or removed: the program is a shell script, and needs nothing
//! of distd.
//!
//! Each file begins with a line that has the SHA-256 of the rest. A file whose line is right was
//! written here and not changed since; any other is somebody else's and stays.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use distd_peer::apt::DETECT_PATH;
use distd_peer::trust::files::{self, FileError};

/// Name of the configuration in `apt.conf.d`. The number lets files of the operator come later.
const SNIPPET: &str = "apt.conf.d/30distd";

/// Name of the program.
const PROGRAM: &str = "distd-proxy-detect";

/// Beginning of the line with the sum.
const MARK: &str = "written by distd apt enable; sha256 of what follows: ";

/// Largest file that is looked at.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Reason why the files were not changed.
#[derive(Debug, thiserror::Error)]
pub enum EnableError {
    /// There is a file that was not written here, or was changed since.
    #[error("{} was not written by distd, or was changed since", .0.display())]
    NotOurs(PathBuf),
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused to read a file.
    #[error("could not read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The path cannot stand in a line of apt's configuration.
    #[error("{} has characters that apt's configuration cannot have", .0.display())]
    Path(PathBuf),
}

/// State of one of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Absent,
    /// It is as it was written for this address.
    Current,
    /// It was written here, for another address or by another version.
    Other,
    /// It is somebody else's.
    NotOurs,
}

/// The two files below a directory such as `/etc/apt`.
#[derive(Debug)]
pub struct Files {
    /// Configuration of apt.
    pub snippet: PathBuf,
    /// Program that apt asks.
    pub program: PathBuf,
    texts: [String; 2],
}

fn sum(text: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

/// Address at which programs of this machine reach a proxy that listens at `listen`.
fn near(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

impl Files {
    /// The files for a proxy that listens at `listen`.
    ///
    /// # Errors
    /// [`EnableError::Path`].
    pub fn new(etc: &Path, listen: SocketAddr) -> Result<Self, EnableError> {
        let (snippet, program) = (etc.join(SNIPPET), etc.join(PROGRAM));
        let plain = |letter: char| letter.is_ascii_graphic() && !"\"\\;{}".contains(letter);
        if !program.to_str().is_some_and(|path| path.chars().all(plain)) {
            return Err(EnableError::Path(program));
        }
        let configuration = format!(
            "// apt asks this program for a proxy; it answers DIRECT when the agent does not run.\n\
             // Remove both files with: distd apt disable\n\
             Acquire::http::Proxy-Auto-Detect \"{}\";\n",
            program.display()
        );
        let at = near(listen);
        let (host, port) = (at.ip(), at.port());
        let in_url = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
        // A frozen agent takes the connection and says nothing, hence the limit. Everything that
        // goes wrong ends in DIRECT: without any answer apt would ask again for each file, and
        // with an error it would end with one.
        let script = format!(
            "# apt runs this program with an address, and uses the proxy that it prints.\n\
             # An agent that ends while it is asked must not end this program.\n\
             trap '' PIPE\n\
             host=${{1#*://}}\n\
             host=${{host%%/*}}\n\
             answer=\n\
             if [[ $host =~ ^[][A-Za-z0-9.:_-]+$ ]] && exec 3<>/dev/tcp/{host}/{port}; then\n\
             \u{20} printf 'GET {DETECT_PATH}?host=%s HTTP/1.1\\r\\nHost: {in_url}:{port}\\r\\nConnection: close\\r\\n\\r\\n' \"$host\" >&3 &&\n\
             \u{20}   IFS= read -r -t 2 answer <&3\n\
             fi 2>/dev/null\n\
             case $answer in\n\
             \u{20} 'HTTP/1.1 200 '*) echo 'http://{in_url}:{port}' ;;\n\
             \u{20} *) echo DIRECT ;;\n\
             esac\n\
             exit 0\n"
        );
        let texts = [
            format!("// {MARK}{}\n{configuration}", sum(&configuration)),
            format!("#!/bin/bash\n# {MARK}{}\n{script}", sum(&script)),
        ];
        Ok(Self { snippet, program, texts })
    }

    fn all(&self) -> [(&Path, &str, u32); 2] {
        let [snippet, program] = &self.texts;
        // The program first: apt ends with an error when the program that it is told of is missing.
        [(&self.program, program, 0o755), (&self.snippet, snippet, 0o644)]
    }

    /// State of the program and of the configuration.
    ///
    /// # Errors
    /// [`EnableError::Read`].
    pub fn states(&self) -> Result<[State; 2], EnableError> {
        let [program, snippet] = self.all();
        Ok([state(program.0, program.1)?, state(snippet.0, snippet.1)?])
    }

    /// Writes both files. Returns whether anything changed.
    ///
    /// # Errors
    /// [`EnableError`]; when one file is somebody else's, neither is changed.
    pub fn enable(&self) -> Result<bool, EnableError> {
        let states = self.ours()?;
        for ((path, text, mode), state) in self.all().into_iter().zip(states) {
            if state == State::Current {
                continue;
            }
            if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
                fs::create_dir_all(dir).map_err(|error| EnableError::Read(dir.to_owned(), error))?;
            }
            files::write_atomic(path, text.as_bytes(), mode)?;
            // The mask of this process takes rights away that apt's own user needs.
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(path, permissions)
                .map_err(|error| EnableError::Read(path.to_owned(), error))?;
        }
        Ok(states != [State::Current; 2])
    }

    /// Removes both files. Returns whether there were any.
    ///
    /// # Errors
    /// [`EnableError`]; when one file is somebody else's, neither is removed.
    pub fn disable(&self) -> Result<bool, EnableError> {
        let states = self.ours()?;
        let [program, snippet] = self.all();
        // The other way round: the configuration first.
        for path in [snippet.0, program.0] {
            if path.exists() {
                files::remove(path)?;
            }
        }
        Ok(states != [State::Absent; 2])
    }

    fn ours(&self) -> Result<[State; 2], EnableError> {
        let states = self.states()?;
        match states.iter().position(|state| *state == State::NotOurs) {
            Some(number) => Err(EnableError::NotOurs(self.all()[number].0.to_owned())),
            None => Ok(states),
        }
    }
}

fn state(path: &Path, wanted: &str) -> Result<State, EnableError> {
    let unreadable = |error| EnableError::Read(path.to_owned(), error);
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Absent),
        Err(error) => return Err(unreadable(error)),
    };
    // A link or a directory is none of ours.
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        return Ok(State::NotOurs);
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8_lossy(&bytes);
    if text == wanted {
        return Ok(State::Current);
    }
    let rest = text.strip_prefix("#!/bin/bash\n").unwrap_or(&text);
    let marked = rest.split_once('\n').is_some_and(|(line, rest)| {
        let said = line.trim_start_matches(['/', '#', ' ']).strip_prefix(MARK);
        said.is_some_and(|said| said == sum(rest))
    });
    Ok(if marked { State::Other } else { State::NotOurs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(etc: &Path, listen: &str) -> Files {
        Files::new(etc, listen.parse().expect("an address")).expect("files")
    }

    #[test]
    fn what_was_written_is_changed_and_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = files(dir.path(), "127.0.0.1:9977");
        assert_eq!(first.states().expect("states"), [State::Absent; 2]);
        assert!(first.enable().expect("enables"));
        assert_eq!(first.states().expect("states"), [State::Current; 2]);
        assert!(!first.enable().expect("enables"), "the second time changes nothing");
        let mode = fs::metadata(&first.program).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o755);

        let second = files(dir.path(), "0.0.0.0:9978");
        assert_eq!(second.states().expect("states"), [State::Other, State::Current]);
        assert!(second.enable().expect("enables"));
        assert!(fs::read_to_string(&second.program).expect("there").contains("127.0.0.1:9978"));

        let changed = format!("{}// mine\n", fs::read_to_string(&second.snippet).expect("there"));
        fs::write(&second.snippet, &changed).expect("write");
        for result in [second.enable(), second.disable(), first.enable()] {
            assert!(matches!(result, Err(EnableError::NotOurs(path)) if path == second.snippet));
        }
        assert_eq!(fs::read_to_string(&second.snippet).expect("there"), changed);
        assert!(second.program.exists());
        fs::remove_file(&second.snippet).expect("remove");
        std::os::unix::fs::symlink("/etc/passwd", &second.snippet).expect("a link");
        assert!(second.disable().is_err(), "a link is none of ours");
        fs::remove_file(&second.snippet).expect("remove");
        assert!(second.disable().expect("disables"));
        assert!(!second.disable().expect("disables") && !second.program.exists());
    }

    #[test]
    fn a_path_that_could_end_the_line_is_refused() {
        let listen = "127.0.0.1:1".parse().expect("an address");
        assert!(matches!(Files::new(Path::new("/etc/a\"b"), listen), Err(EnableError::Path(_))));
    }

    /// Output and exit code of the program.
    fn detect(files: &Files, url: &str) -> (String, i32) {
        let output = std::process::Command::new(&files.program).arg(url).output().expect("bash");
        (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.status.code().unwrap_or(-1))
    }

    #[test]
    fn without_a_good_answer_the_program_says_direct() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().expect("a directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let at = listener.local_addr().expect("an address");
        let files = files(dir.path(), &at.to_string());
        files.enable().expect("enables");
        let url = "http://deb.debian.org/debian/dists/x/InRelease";
        let serving = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 404 Not Found\r\n\r\n", ""] {
                let (mut stream, _) = listener.accept().expect("a connection");
                // Line by line, as bash writes it; with a part unread, the end would be a reset.
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    let mut some = [0; 1000];
                    let length = stream.read(&mut some).expect("a request");
                    request.push_str(&String::from_utf8_lossy(&some[..length]));
                }
                asked.push(request);
                stream.write_all(answer.as_bytes()).expect("write");
            }
            (asked, listener)
        });
        assert_eq!(detect(&files, url), (format!("http://{at}"), 0));
        assert_eq!(detect(&files, url), ("DIRECT".to_owned(), 0));
        assert_eq!(detect(&files, url), ("DIRECT".to_owned(), 0));
        let (asked, listener) = serving.join().expect("served");
        assert!(asked[0].starts_with("GET /distd-apt?host=deb.debian.org HTTP/1.1\r\n"), "{asked:?}");
        // Nobody accepts: the same as a frozen agent, whose system takes connections for it.
        assert_eq!(detect(&files, url), ("DIRECT".to_owned(), 0));
        drop(listener);
        assert_eq!(detect(&files, url), ("DIRECT".to_owned(), 0));
        for hostile in ["http://a b/", "", "http://$(touch x)/", "http://h\r\nX: y/"] {
            assert_eq!(detect(&files, hostile), ("DIRECT".to_owned(), 0), "{hostile:?}");
        }
    }
}
