//! A fault at every system call: the command is killed there, or the call fails with EIO, ENOSPC or
//! EPERM.
//!
//! After each fault the old release or the new one is in place, the same command without a fault
//! ends with the new one, and nothing else was touched. The ordinary run takes a sample, with the
//! first and the last occurrence of every system call; `tests/soak/faults.sh` takes all points.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::Rng;
use distd_tests::disks::{Loop, can_mount};
use distd_tests::faults::{self, Fault, Point};
use distd_tests::lab::{Lab, Outcome, binary};
use rustix::fs::XattrFlags;

/// Number of points that the ordinary run takes of each command besides the first and the last of
/// every system call.
const SAMPLE: usize = 10;

/// Exit code of the relay's script if the relay ended before the pull did.
const RELAY_ENDED: i32 = 100;

type Checked = Result<(), String>;

/// A command, its initial state, and the checks after it.
struct Case<'c> {
    name: &'static str,
    work: PathBuf,
    prepare: &'c dyn Fn(),
    command: &'c dyn Fn() -> Command,
    /// Check after the fault, whatever the outcome of the command.
    holds: &'c dyn Fn(&Outcome) -> Checked,
    /// Check after a run without a fault.
    done: &'c dyn Fn(&Outcome) -> Checked,
    /// Whether a point belongs to this command.
    takes: &'c dyn Fn(&Point) -> bool,
    /// Points that failed once, by call, end of the path and fault; they are always taken.
    once_wrong: &'c [(&'c str, &'c str, Fault)],
}

/// The points of `all` that the ordinary run takes.
fn sample(all: &[Point], once_wrong: &[(&str, &str, Fault)], rng: &mut Rng) -> Vec<Point> {
    if std::env::var("DISTD_TEST_FAULTS").is_ok_and(|which| which == "all") {
        return all.to_vec();
    }
    let mut of_call: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in all {
        of_call.entry(&point.call).or_default().push(point);
    }
    let was_wrong = |point: &&Point| {
        once_wrong.iter().any(|(call, path, fault)| {
            *call == point.call
                && *fault == point.fault
                && point.path.as_deref().is_some_and(|of| of.ends_with(path))
        })
    };
    let mut taken: BTreeSet<Point> = all.iter().filter(was_wrong).cloned().collect();
    assert!(taken.len() >= once_wrong.len(), "points that were wrong once are not there: {once_wrong:?}");
    for points in of_call.values() {
        let first: Vec<_> = points.iter().filter(|point| point.nth == 1).collect();
        let last: Vec<_> = points.iter().filter(|point| point.nth == point.of).collect();
        for some in [first, last] {
            taken.insert((*some[rng.below(some.len() as u64) as usize]).clone());
        }
    }
    for _ in 0..SAMPLE {
        taken.insert(all[rng.below(all.len() as u64) as usize].clone());
    }
    taken.into_iter().collect()
}

fn said_right(outcome: &Outcome, point: &Point) -> Checked {
    if outcome.stderr.contains("panicked") {
        return Err(format!("a panic: {}", outcome.stderr));
    }
    let killed = outcome.code == -1 && point.fault == Fault::Kill;
    // Without a path the fault may strike the loader, so that the program never ran.
    let unloaded = point.path.is_none() && outcome.stderr.contains("while loading shared libraries");
    let silent = point.path.as_deref().is_some_and(|path| path.ends_with("said.err"));
    match outcome.code {
        0 => Ok(()),
        _ if killed || unloaded || silent => Ok(()),
        RELAY_ENDED => Ok(()),
        1..=9 if outcome.stderr.contains("next:") => Ok(()),
        code @ 1..=9 => Err(format!("no advice (exit {code}): {}", outcome.stderr)),
        code => Err(format!("exit {code}: {}", outcome.stderr)),
    }
}

fn one(case: &Case<'_>, point: &Point) -> Result<bool, String> {
    (case.prepare)();
    let (outcome, hit) = faults::injected(&(case.command)(), point, &case.work);
    said_right(&outcome, point)?;
    (case.holds)(&outcome)
        .map_err(|why| format!("after the fault (exit {}): {why}\n{}", outcome.code, outcome.stderr))?;
    let again = faults::run((case.command)(), &case.work);
    if again.code != 0 {
        return Err(format!("the same command again: exit {}: {}", again.code, again.stderr));
    }
    (case.done)(&again).map_err(|why| format!("the same command again: {why}\nfirst: {}", outcome.stderr))?;
    Ok(hit)
}

fn at_every_point(case: &Case<'_>, rng_seed: u64) {
    let mut rng = Rng::announced(case.name, rng_seed);
    let logs = ["first", "second"].map(|name| case.work.join(name));
    for log in &logs {
        (case.prepare)();
        let counting = faults::counting();
        let args: Vec<&str> = counting.iter().map(String::as_str).collect();
        let outcome = faults::run(faults::traced(&(case.command)(), &args, log), &case.work).ok();
        (case.done)(&outcome).unwrap_or_else(|why| panic!("{} without a fault: {why}", case.name));
    }
    let mut all = faults::points(&logs[0], &logs[1]);
    all.retain(|point| (case.takes)(point));
    let points = sample(&all, case.once_wrong, &mut rng);
    let (mut hits, mut wrong) = (0, Vec::new());
    for point in &points {
        match one(case, point) {
            Ok(hit) => hits += usize::from(hit),
            Err(why) => {
                println!("{}: WRONG {point}: {}", case.name, why.trim());
                wrong.push(format!("{point}: {why}"));
            }
        }
    }
    let right = points.len() - wrong.len();
    println!(
        "{}: {} of {} points taken, {right} right ({hits} of them struck)",
        case.name,
        points.len(),
        all.len()
    );
    assert!(hits * 2 > points.len() || !wrong.is_empty(), "{}: too few faults struck", case.name);
    assert!(wrong.is_empty(), "{}: {} points are wrong:\n{}", case.name, wrong.len(), wrong.join("\n"));
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("run cp").success());
}

/// Names in a directory, without those of files that the user keeps.
fn names(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).expect("list").map(|e| e.expect("entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with("out.distd-kept")).collect()
}

/// A device with the old release in place, from which every point starts.
struct Device {
    lab: Lab,
    product: &'static str,
    old: BTreeMap<PathBuf, String>,
    new: BTreeMap<PathBuf, String>,
    /// Names beside the artifact and in the state directory after a pull without a fault.
    usual: RefCell<Option<[BTreeSet<String>; 2]>>,
    /// Whether the pull reported that it left something out. An error by which the system says that
    /// this user or this file system cannot have something (EPERM, or ENOSPC for an attribute that
    /// is too long) is no fault; the pull counts it in `left_out` (docs/cli.md).
    lacks: Cell<bool>,
    /// A block device and its initial content.
    block: Option<(PathBuf, Vec<u8>)>,
}

impl Device {
    /// A device with releases that `make` writes.
    fn new(product: &'static str, make: impl FnMut(&Path, u32)) -> Self {
        Self::on(Lab::start(), None, product, make)
    }

    /// [`Device::new`] in `lab`, on a block device or not.
    fn on(lab: Lab, block: Option<PathBuf>, product: &'static str, mut make: impl FnMut(&Path, u32)) -> Self {
        lab.enroll("d", lab.quic());
        for version in [1, 2] {
            let artifact = lab.path(&format!("{product}{version}"));
            make(&artifact, version);
            lab.push(&artifact, product, &version.to_string()).ok();
        }
        let place = lab.path("place");
        fs::create_dir(&place).expect("mkdir");
        for name in ["neighbour", "out.mine", "out2", ".hidden"] {
            fs::write(place.join(name), format!("{name} is the user's")).expect("write");
        }
        let mut device = Self {
            lab,
            product,
            old: BTreeMap::new(),
            new: BTreeMap::new(),
            usual: RefCell::new(None),
            lacks: Cell::new(false),
            block: block.map(|path| (path, Vec::new())),
        };
        let out = device.out();
        device.lab.pull("d", &format!("{product}@1"), &out, &[]).ok();
        if let Some((path, start)) = &mut device.block {
            *start = fs::read(path).expect("read the device");
        }
        copy(&place, &device.lab.path("place.start"));
        copy(&device.lab.path("d"), &device.lab.path("d.start"));
        fs::create_dir(device.lab.path("work")).expect("mkdir");
        device.old = faults::fingerprint(&out, "mine");
        device.lab.pull("d", &format!("{product}@2"), &out, &[]).ok();
        device.new = faults::fingerprint(&out, "mine");
        assert_eq!(device.old == device.new, device.block.is_some());
        device
    }

    fn out(&self) -> PathBuf {
        let file = || self.lab.path("place/out");
        self.block.as_ref().map_or_else(file, |(path, _)| path.clone())
    }

    fn prepare(&self) {
        self.lacks.set(false);
        for name in ["place", "d"] {
            copy(&self.lab.path(&format!("{name}.start")), &self.lab.path(name));
        }
        if let Some((path, start)) = &self.block {
            let device = File::options().write(true).open(path).expect("open the device");
            device.write_all_at(start, 0).and_then(|()| device.sync_all()).expect("write the device");
        }
    }

    fn command(&self) -> Command {
        self.lab.pull_command("d", &format!("{}@2", self.product), &self.out(), &[])
    }

    fn bystanders(&self) -> Checked {
        for name in ["neighbour", "out.mine", "out2", ".hidden"] {
            let text =
                fs::read_to_string(self.lab.path("place").join(name)).map_err(|e| format!("{name}: {e}"))?;
            if text != format!("{name} is the user's") {
                return Err(format!("{name} was written"));
            }
        }
        for name in ["d/client.toml", "d/node.key"] {
            let (before, now) = (self.lab.path(&name.replace("d/", "d.start/")), self.lab.path(name));
            if before.exists() && fs::read(&before).ok() != fs::read(&now).ok() {
                return Err(format!("{name} was written"));
            }
        }
        let added = self.lab.path("place.start/out/mine");
        if added.exists() {
            let below = faults::fingerprint(&self.lab.path("place"), "");
            let mut found = below.keys().filter(|path| path.ends_with("mine"));
            let same =
                |path: &PathBuf| fs::read(self.lab.path("place").join(path)).ok() == fs::read(&added).ok();
            let copies = usize::from(found.any(same));
            if copies == 0 {
                return Err("the file that the user added is nowhere".to_owned());
            }
        }
        Ok(())
    }

    fn holds(&self, outcome: &Outcome) -> Checked {
        let left_out = outcome.json["left_out"].as_object();
        self.lacks.set(outcome.code == 0 && left_out.is_some_and(|left_out| !left_out.is_empty()));
        if self.lacks.get() {
            return self.bystanders();
        }
        let now = faults::fingerprint(&self.out(), "mine");
        if now != self.old && now != self.new {
            return Err(format!("neither old nor new is in place: {now:#?}"));
        }
        self.bystanders()
    }

    fn done(&self, _: &Outcome) -> Checked {
        let now = faults::fingerprint(&self.out(), "mine");
        if now != self.new && !self.lacks.get() {
            return Err(format!("the new release is not in place: {now:#?}"));
        }
        self.clean_and_verified()
    }

    fn clean_and_verified(&self) -> Checked {
        self.bystanders()?;
        let now = [names(&self.lab.path("place")), names(&self.lab.path("d"))];
        let usual = self.usual.borrow_mut().get_or_insert_with(|| now.clone()).clone();
        let [mut beside, state] = now.clone();
        if self.lacks.get() {
            beside.remove("out.distd-left-out");
        }
        if [beside, state] != usual {
            return Err(format!("files beside it are {now:?}, not {usual:?}"));
        }
        let out = self.out().display().to_string();
        let verified = self.lab.device("d", &["verify", &out]);
        if verified.code != 0 {
            return Err(format!("verify: exit {}: {}", verified.code, verified.stderr));
        }
        Ok(())
    }

    fn at_every_point(
        &self,
        name: &'static str,
        rng_seed: u64,
        holds: &dyn Fn(&Outcome) -> Checked,
        once_wrong: &[(&str, &str, Fault)],
    ) {
        let case = Case {
            name,
            work: self.lab.path("work"),
            prepare: &|| self.prepare(),
            command: &|| self.command(),
            holds,
            done: &|outcome| self.done(outcome),
            takes: &|_| true,
            once_wrong,
        };
        at_every_point(&case, rng_seed);
    }
}

/// A file whose second release differs at its end.
fn image(path: &Path, version: u32) {
    let mut bytes = Rng::new(131).bytes(300_000);
    bytes.truncate(220_000);
    bytes.extend(Rng::new(u64::from(version)).bytes(80_000));
    fs::write(path, bytes).expect("write");
}

/// A tree with every kind of entry that any user can make.
fn tree(path: &Path, version: u32) {
    fs::create_dir_all(path.join("sub/empty")).expect("mkdir");
    fs::write(path.join("sub/data"), Rng::new(u64::from(version)).bytes(90_000)).expect("write");
    fs::write(path.join("same"), Rng::new(7).bytes(30_000)).expect("write");
    fs::write(path.join("attr"), format!("release {version}")).expect("write");
    fs::set_permissions(path.join("attr"), fs::Permissions::from_mode(0o750)).expect("chmod");
    rustix::fs::lsetxattr(
        path.join("attr"),
        "user.kind",
        version.to_string().as_bytes(),
        XattrFlags::empty(),
    )
    .expect("set an attribute");
    symlink(format!("sub/data{version}"), path.join("link")).expect("symlink");
    fs::hard_link(path.join("same"), path.join("other")).expect("link");
}

#[test]
fn a_pull_of_a_file_survives_a_fault_at_any_system_call() {
    if !faults::can_trace() {
        return;
    }
    let device = Device::new("os", image);
    let once_wrong = [
        // This file stayed beside the artifact for ever.
        ("unlink", "out.distd-part-journal", Fault::Error("ENOSPC")),
        // This fault was reported as `refused`, without a hint on what to do.
        ("mkdir", "/d/tuf/trusted", Fault::Error("EIO")),
        ("fchmod", "out.distd-part", Fault::Error("EIO")),
        // A temporary file stayed in the state directory for ever.
        ("rename", "/d/.capabilities.part", Fault::Error("EIO")),
        ("rename", "/d/.capabilities.part", Fault::Kill),
    ];
    device.at_every_point("pull of a file", 131, &|outcome| device.holds(outcome), &once_wrong);
}

#[test]
fn a_pull_of_a_tree_survives_a_fault_at_any_system_call() {
    if !faults::can_trace() {
        return;
    }
    let device = Device::new("t", tree);
    fs::write(device.lab.path("place.start/out/mine"), "the user's").expect("write");
    let once_wrong = [
        // The journal of a tree that was not laid out was taken for the journal of the next tree,
        // whose listing was empty then.
        ("mkdirat", "empty", Fault::Error("EIO")),
        ("linkat", "other", Fault::Error("EIO")),
        // An error of the disk was taken for an attribute that the file system cannot have.
        ("lsetxattr", "attr", Fault::Error("EIO")),
        // The old tree with the user's file stayed in the staging directory.
        ("renameat2", "out.distd-part/tree", Fault::Error("ENOSPC")),
    ];
    device.at_every_point("pull of a tree", 132, &|outcome| device.holds(outcome), &once_wrong);
}

#[test]
fn a_pull_to_a_block_device_goes_on_after_a_fault_at_any_system_call() {
    if !can_mount() || !faults::can_trace() {
        return;
    }
    const ROOM: u64 = 1 << 20;
    let lab = Lab::start();
    let slot = Loop::new(&lab.path("backing"), ROOM);
    let tail = Rng::new(8).bytes(ROOM as usize - 300_000);
    let node = File::options().read(true).write(true).open(slot.path()).expect("open the device");
    node.write_all_at(&tail, 300_000).expect("write");
    let device = Device::on(lab, Some(slot.path().to_owned()), "os", image);
    let whole = |artifact: &str| [fs::read(device.lab.path(artifact)).expect("read"), tail.clone()].concat();
    let new = whole("os2");
    // While the device is written it holds neither release; bytes behind the artifact never change.
    let holds = |_: &Outcome| {
        let now = fs::read(slot.path()).expect("read the device");
        if now[300_000..] != tail {
            return Err("bytes behind the artifact were written".to_owned());
        }
        let beside = slot.path().parent().map(names).unwrap_or_default();
        if let Some(name) = beside.iter().find(|name| name.contains("distd")) {
            return Err(format!("{name} was made in /dev"));
        }
        device.bystanders()
    };
    let case = Case {
        name: "pull to a block device",
        work: device.lab.path("work"),
        prepare: &|| device.prepare(),
        command: &|| device.command(),
        holds: &holds,
        done: &|outcome| match fs::read(slot.path()).expect("read the device") == new {
            true => device.done(outcome),
            false => Err("the new release is not on the device".to_owned()),
        },
        takes: &|_| true,
        // A device whose `statx` failed was taken for a file.
        once_wrong: &[("statx", slot.path().to_str().expect("a name"), Fault::Error("EIO"))],
    };
    at_every_point(&case, 133);
}

#[test]
fn a_push_survives_a_fault_at_any_system_call() {
    if !faults::can_trace() {
        return;
    }
    let lab = Lab::start();
    let (state, kept, file) = (lab.path("admin"), lab.path("admin.start"), lab.path("artifact"));
    copy(&state, &kept);
    let work = lab.path("work");
    fs::create_dir(&work).expect("mkdir");
    let round = Cell::new(0u64);
    let bytes = || Rng::new(round.get()).bytes(200_000);
    let holds = || match fs::read(&file).ok() == Some(bytes()) && names(&state) == names(&kept) {
        true => Ok(()),
        false => Err("the artifact or the state was changed".to_owned()),
    };
    let case = Case {
        name: "push",
        work,
        prepare: &|| {
            round.set(round.get() + 1);
            fs::write(&file, bytes()).expect("write");
            copy(&kept, &state);
        },
        command: &|| {
            let mut command = lab.command("admin");
            command.arg("push").arg(&file).args(["--product", "os", "--version", &round.get().to_string()]);
            command
        },
        holds: &|_| holds(),
        done: &|outcome| {
            holds()?;
            let hash = blake3::hash(&bytes()).to_hex().to_string();
            let shown = lab.admin(&["release", "show", &format!("os@{}", round.get())]);
            match outcome.json["blake3"] == hash.as_str() && shown.code == 0 {
                true => Ok(()),
                false => Err(format!("the release is not there: {} {}", outcome.json, shown.stderr)),
            }
        },
        takes: &|_| true,
        once_wrong: &[],
    };
    at_every_point(&case, 134);
}

/// Starts a relay ($1, address $2, parent $3, data $4), runs the rest of its arguments and ends the
/// relay. Ends with their exit code, or with 100 when the relay ended by itself.
const WITH_RELAY: &str = r#"
relay=$1 listen=$2 parent=$3 data=$4; shift 4
"$relay" run --listen "$listen" --parent "$parent" --label relay --data "$data" >"$data.said" & r=$!
until grep -q "relay listening" "$data.said"; do kill -0 $r 2>/dev/null || exit 100; sleep 0.02; done
"$@" & p=$!
while kill -0 $p 2>/dev/null; do
  kill -0 $r 2>/dev/null || { kill $p; wait $p; exit 100; }
  sleep 0.02
done
wait $p; code=$?
kill $r; wait $r
exit $code
"#;

#[test]
fn a_relay_serves_the_release_after_a_fault_at_any_system_call() {
    if !faults::can_trace() {
        return;
    }
    let lab = Lab::start();
    let artifact = lab.path("artifact");
    image(&artifact, 1);
    lab.push(&artifact, "os", "1").ok();
    let mut relay = lab.relay("relay", lab.quic());
    let address = relay.addresses[0].clone();
    relay.kill();
    lab.enroll("d", lab.quic());
    for name in ["relay", "d"] {
        copy(&lab.path(name), &lab.path(&format!("{name}.start")));
    }
    let work = lab.path("work");
    fs::create_dir(&work).expect("mkdir");
    let (data, out) = (lab.path("relay"), lab.path("out"));
    let case = Case {
        name: "fetch of a relay",
        work,
        prepare: &|| {
            for name in ["relay", "d"] {
                copy(&lab.path(&format!("{name}.start")), &lab.path(name));
            }
            let _ = fs::remove_file(&out);
        },
        command: &|| {
            let pull = lab.pull_command("d", "os@1", &out, &["--no-share", "--parent", &address]);
            let mut command = Command::new("bash");
            command.args(["-c", WITH_RELAY, "bash"]).arg(binary("distd-peer")).args([&address, lab.quic()]);
            command.arg(&data).arg(pull.get_program()).args(pull.get_args());
            command
        },
        holds: &|_| match !out.exists() || fs::read(&out).ok() == fs::read(&artifact).ok() {
            true => Ok(()),
            false => Err("something else than the release is in place".to_owned()),
        },
        done: &|_| match fs::read(&out).ok() == fs::read(&artifact).ok() {
            true => Ok(()),
            false => Err("the release is not in place".to_owned()),
        },
        takes: &|point| point.path.as_deref().is_some_and(|path| Path::new(path).starts_with(&data)),
        once_wrong: &[],
    };
    at_every_point(&case, 135);
}
