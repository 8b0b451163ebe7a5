//! The table of all settings of a device.

use std::path::PathBuf;
use std::time::Duration;

use distd_core::api::Word;
use distd_core::fleet::window::{Window, WindowError};
use distd_core::names::{Name, Wanted};
use distd_peer::apt;
use distd_peer::rates::time_zone;
use distd_peer::settings::{Setting, Shown, Table, filled, flag, number, parsed, without_password};
use serde::Deserialize;

use super::{DAY_SECONDS, LIMITS, LINGER_SECONDS_MAX, Values, parent};

/// Returns the text of a setting that may be absent.
fn optional(text: Option<&str>) -> Shown {
    Shown::Text(text.unwrap_or_default().to_owned())
}

/// Returns the text of a path that may be absent.
fn path(path: Option<&PathBuf>) -> Shown {
    Shown::Text(path.map_or_else(String::new, |path| path.display().to_string()))
}

/// Parses a part of the week.
fn window(text: &str) -> Result<Window, String> {
    text.parse().map_err(|error: WindowError| format!("cannot be used: {error}"))
}

/// Parses the name and the device of a slot.
fn slot(text: &str) -> Result<(Name, PathBuf), String> {
    let parsed = text.split_once('=').and_then(|(name, path)| Some((name.trim().parse().ok()?, path.trim())));
    match parsed {
        Some((name, path)) if path.starts_with('/') => Ok((name, path.into())),
        _ => Err("is not NAME=DEVICE, as in a=/dev/disk/by-partlabel/root-a".to_owned()),
    }
}

/// Parses one of the words of `T`. `wrong` ends the sentence about any other text.
fn word<'t, T: Deserialize<'t>>(text: &'t str, wrong: &str) -> Result<T, String> {
    match Word::from_text(text) {
        Word::Known(word) => Ok(word),
        Word::Other(_) => Err(wrong.to_owned()),
    }
}

/// All settings of a device.
pub const TABLE: Table<Values> = Table {
    settings: &[
        Setting {
            key: "server",
            option: "server",
            variable: "DISTD_SERVER",
            value: "URL",
            several: false,
            default: "",
            help: "URL of the origin's HTTP API; `distd login` remembers it",
            set: |s, text| filled(text, "URL").map(|url| s.server = Some(url)),
            show: |s| optional(s.server.as_deref()),
        },
        Setting {
            key: "token",
            option: "",
            variable: "DISTD_TOKEN",
            value: "TOKEN",
            several: false,
            default: "",
            help: "API token; `distd login` remembers it",
            set: |s, text| filled(text, "token").map(|token| s.token = Some(token)),
            show: |s| optional(s.token.as_ref().map(|_| "***")),
        },
        Setting {
            key: "parents",
            option: "parent",
            variable: "DISTD_PARENT",
            value: "HOST:PORT",
            several: true,
            default: "",
            help: "Relay or origin to connect to, nearest first; `distd enroll` remembers it",
            set: |s, text| parent(text).map(|parent| s.parents.push(parent)),
            show: |s| Shown::List(s.parents.clone()),
        },
        Setting {
            key: "transport",
            option: "transport",
            variable: "DISTD_TRANSPORT",
            value: "HOW",
            several: false,
            default: "`auto`",
            help: "How parents are reached: auto, quic, or https where UDP is blocked",
            set: |s, text| {
                parsed(text, "is none of auto, quic and https").map(|transport| s.transport = transport)
            },
            show: |s| Shown::Text(s.transport.to_string()),
        },
        Setting {
            key: "proxy_url",
            option: "",
            variable: "DISTD_PROXY_URL",
            value: "URL",
            several: false,
            default: "`HTTPS_PROXY`",
            help: "HTTP proxy towards parents, `http://[USER:PASSWORD@]HOST:PORT`",
            set: |s, text| filled(text, "URL").map(|url| s.proxy_url = Some(url)),
            show: |s| Shown::Text(s.proxy_url.as_deref().map(without_password).unwrap_or_default()),
        },
        Setting {
            key: "connectivity",
            option: "connectivity",
            variable: "DISTD_CONNECTIVITY",
            value: "HOW_FAR",
            several: false,
            default: "`online`",
            help: "How far packets may go: online (anywhere), lan_only (only hosts on the networks to which this \
                   device is attached; no name is looked up) or offline (nowhere)",
            set: |s, text| {
                word(text, "is none of online, lan_only and offline").map(|far| s.connectivity = far)
            },
            show: |s| Shown::Text(Word::from(s.connectivity).to_string()),
        },
        Setting {
            key: "site",
            option: "site",
            variable: "DISTD_SITE",
            value: "NAME",
            several: false,
            default: "the parent decides",
            help: "Name of the site",
            set: |s, text| filled(text, "site").map(|site| s.site = Some(site)),
            show: |s| optional(s.site.as_deref()),
        },
        Setting {
            key: "metered",
            option: "metered",
            variable: "DISTD_METERED",
            value: "",
            several: false,
            default: "`false`",
            help: "The link is paid by the byte: the device serves nothing",
            set: |s, text| flag(text).map(|metered| s.metered = metered),
            show: |s| Shown::Flag(s.metered),
        },
        Setting {
            key: "view_memory_mib",
            option: "view-memory-mib",
            variable: "DISTD_VIEW_MEMORY_MIB",
            value: "MIB",
            several: false,
            default: "a quarter of the memory, at least 16",
            help: "Memory for packing files again while patches are applied. A file that needs more is fetched in \
                   chunks instead",
            set: |s, text| number(text, 16..=1 << 20).map(|mib| s.view_memory_mib = Some(mib)),
            show: |s| Shown::Number((s.view_memory() >> 20).into()),
        },
        Setting {
            key: "mdns",
            option: "mdns",
            variable: "DISTD_MDNS",
            value: "",
            several: false,
            default: "`true`",
            help: "Look for neighbours by multicast DNS",
            set: |s, text| flag(text).map(|mdns| s.mdns = mdns),
            show: |s| Shown::Flag(s.mdns),
        },
        Setting {
            key: "metrics",
            option: "metrics",
            variable: "DISTD_AGENT_METRICS",
            value: "ADDR:PORT",
            several: false,
            default: "",
            help: "Loopback address where `distd agent` serves metrics for Prometheus, at `http://ADDR:PORT/metrics`",
            set: |s, text| {
                parsed(text, "is not ADDRESS:PORT, as in 127.0.0.1:9100").map(|at| s.metrics = Some(at))
            },
            show: |s| Shown::Text(s.metrics.map_or_else(String::new, |at| at.to_string())),
        },
        Setting {
            key: "share.enabled",
            option: "share",
            variable: "DISTD_SHARE",
            value: "",
            several: false,
            default: "`true`",
            help: "Exchange chunks with neighbours at all",
            set: |s, text| flag(text).map(|share| s.share = share),
            show: |s| Shown::Flag(s.share),
        },
        Setting {
            key: "share.listen",
            option: "listen",
            variable: "DISTD_AGENT_LISTEN",
            value: "ADDR:PORT",
            several: false,
            default: "`[::]:4434`",
            help: "Address that `distd agent` listens on, QUIC over UDP",
            set: |s, text| {
                parsed(text, "is not ADDRESS:PORT, as in 0.0.0.0:4434").map(|listen| s.listen = listen)
            },
            show: |s| Shown::Text(s.listen.to_string()),
        },
        Setting {
            key: "share.linger_seconds",
            option: "linger-seconds",
            variable: "DISTD_LINGER_SECONDS",
            value: "SECONDS",
            several: false,
            default: "5",
            help: "How long a finished pull continues to serve neighbours that fetch from it; half a second at least",
            set: |s, text| {
                number(text, 0..=LINGER_SECONDS_MAX).map(|seconds| s.linger = Duration::from_secs(seconds))
            },
            show: |s| Shown::Number(s.linger.as_secs().into()),
        },
        Setting {
            key: "follow.channel",
            option: "follow",
            variable: "DISTD_FOLLOW",
            value: "PRODUCT:CHANNEL",
            several: false,
            default: "",
            help: "Channel whose releases `distd agent` installs (rollouts.md)",
            set: |s, text| match text.parse() {
                Ok(wanted @ Wanted::Channel { .. }) => {
                    s.follow = Some(wanted);
                    Ok(())
                }
                Ok(Wanted::Release { .. }) | Err(_) => Err("is no channel: write PRODUCT:CHANNEL".to_owned()),
            },
            show: |s| Shown::Text(s.follow.as_ref().map_or_else(String::new, ToString::to_string)),
        },
        Setting {
            key: "follow.directory",
            option: "follow-into",
            variable: "DISTD_FOLLOW_INTO",
            value: "DIR",
            several: false,
            default: "",
            help: "Directory in which the releases of that channel are installed, as `releases/VERSION`, with the \
                   link `current`",
            set: |s, text| filled(text, "directory").map(|dir| s.follow_directory = Some(dir)),
            show: |s| path(s.follow_directory.as_ref()),
        },
        Setting {
            key: "follow.keep",
            option: "follow-keep",
            variable: "DISTD_FOLLOW_KEEP",
            value: "N",
            several: false,
            default: "2",
            help: "Number of releases that stay in that directory",
            set: |s, text| number(text, 2..=100).map(|keep| s.follow_keep = keep),
            show: |s| Shown::Number(u64::try_from(s.follow_keep).unwrap_or(u64::MAX).into()),
        },
        Setting {
            key: "follow.slots",
            option: "slot",
            variable: "DISTD_SLOTS",
            value: "NAME=DEVICE",
            several: true,
            default: "",
            help: "Slots that the releases are written to instead of a directory: two, each with the boot loader's \
                   name for it and its block device, as in `a=/dev/disk/by-partlabel/root-a` (slots.md)",
            set: |s, text| slot(text).map(|slot| s.slots.push(slot)),
            show: |s| {
                Shown::List(s.slots.iter().map(|(name, path)| format!("{name}={}", path.display())).collect())
            },
        },
        Setting {
            key: "follow.partitions",
            option: "partition",
            variable: "DISTD_PARTITIONS",
            value: "LABEL[=PATH]",
            several: true,
            default: "",
            help: "Partitions of releases that are disk images, each with its place in a slot: a device or a file, \
                   with `{slot}` for the slot's name, or the slot's own device where no path is named, as in `root` \
                   and `uki=/boot/efi/distd/{slot}/uki.efi` (slots.md)",
            set: |s, text| text.parse().map(|place| s.partitions.push(place)),
            show: |s| Shown::List(s.partitions.iter().map(ToString::to_string).collect()),
        },
        Setting {
            key: "follow.boot_loader",
            option: "boot-loader",
            variable: "DISTD_BOOT_LOADER",
            value: "KIND",
            several: false,
            default: "",
            help: "Boot loader that chooses a slot: systemd-boot, grub, u-boot, rauc or command",
            set: |s, text| {
                word(text, "is none of systemd-boot, grub, u-boot, rauc and command")
                    .map(|kind| s.boot_loader = Some(kind))
            },
            show: |s| {
                Shown::Text(s.boot_loader.map_or_else(String::new, |kind| Word::from(kind).to_string()))
            },
        },
        Setting {
            key: "follow.boot_path",
            option: "boot-path",
            variable: "DISTD_BOOT_PATH",
            value: "PATH",
            several: false,
            default: "by boot loader",
            help: "Where the boot loader keeps its choice: mount point of the EFI system partition, environment \
                   block of GRUB, `fw_env.config` of U-Boot, or the program of `command`",
            set: |s, text| filled(text, "path").map(|path| s.boot_path = Some(path)),
            show: |s| path(s.boot_path.as_ref()),
        },
        Setting {
            key: "follow.boot_tries",
            option: "boot-tries",
            variable: "DISTD_BOOT_TRIES",
            value: "N",
            several: false,
            default: "1",
            help: "Number of times that a release which does not start, or restarts while it is checked, is started \
                   before it has failed",
            set: |s, text| number(text, 1..=16).map(|tries| s.boot_tries = tries),
            show: |s| Shown::Number(s.boot_tries.into()),
        },
        Setting {
            key: "follow.reboot_command",
            option: "reboot-command",
            variable: "DISTD_REBOOT_COMMAND",
            value: "COMMAND",
            several: false,
            default: "`systemctl reboot`",
            help: "Command, for the shell, that restarts the system into another slot; `none` to wait until \
                   something else restarts it",
            set: |s, text| {
                filled::<String>(text, "command")
                    .map(|command| s.reboot_command = if command == "none" { String::new() } else { command })
            },
            show: |s| {
                let is_none = s.reboot_command.is_empty();
                Shown::Text(if is_none { "none".to_owned() } else { s.reboot_command.clone() })
            },
        },
        Setting {
            key: "follow.unified_kernel",
            option: "unified-kernel",
            variable: "DISTD_UNIFIED_KERNEL",
            value: "LABEL",
            several: false,
            default: "",
            help: "Label of the partition of a release that is a unified kernel image, whose place is on the EFI \
                   system partition; systemd-boot starts it, with its own options",
            set: |s, text| filled(text, "label").map(|label| s.unified_kernel = Some(label)),
            show: |s| Shown::Text(s.unified_kernel.clone().unwrap_or_default()),
        },
        Setting {
            key: "follow.kernel",
            option: "kernel",
            variable: "DISTD_KERNEL",
            value: "PATH",
            several: false,
            default: "",
            help: "Path of the kernel in a release, which is copied to the EFI system partition for systemd-boot, as \
                   in `boot/vmlinuz`",
            set: |s, text| filled(text, "path").map(|path| s.kernel = Some(path)),
            show: |s| path(s.kernel.as_ref()),
        },
        Setting {
            key: "follow.initrd",
            option: "initrd",
            variable: "DISTD_INITRD",
            value: "PATH",
            several: false,
            default: "",
            help: "Path of the initial RAM disk in a release, likewise",
            set: |s, text| filled(text, "path").map(|path| s.initrd = Some(path)),
            show: |s| path(s.initrd.as_ref()),
        },
        Setting {
            key: "follow.kernel_options",
            option: "kernel-options",
            variable: "DISTD_KERNEL_OPTIONS",
            value: "TEXT",
            several: false,
            default: "",
            help: "Options of the kernel for systemd-boot; `{slot}` stands for the slot's name. `distd.slot={slot}` \
                   is added. None for a unified kernel image that has its own",
            set: |s, text| match text.chars().any(char::is_control) {
                true => Err("has a control character".to_owned()),
                false => {
                    s.kernel_options = text.trim().to_owned();
                    Ok(())
                }
            },
            show: |s| Shown::Text(s.kernel_options.clone()),
        },
        Setting {
            key: "follow.poll_seconds",
            option: "follow-poll-seconds",
            variable: "DISTD_FOLLOW_POLL_SECONDS",
            value: "SECONDS",
            several: false,
            default: "300",
            help: "Time between two looks at that channel, at most; each is shortened by up to a quarter at random",
            set: |s, text| {
                number(text, 1..=DAY_SECONDS).map(|seconds| s.follow_poll = Duration::from_secs(seconds))
            },
            show: |s| Shown::Number(s.follow_poll.as_secs().into()),
        },
        Setting {
            key: "follow.download_windows",
            option: "download-window",
            variable: "DISTD_DOWNLOAD_WINDOWS",
            value: "DAYS FROM-TO",
            several: true,
            default: "the whole week",
            help: "Parts of the week in which a fetch of a release may begin, as in `mon-fri 22:00-05:00`",
            set: |s, text| window(text).map(|window| s.download_windows.push(window)),
            show: |s| Shown::List(s.download_windows.iter().map(ToString::to_string).collect()),
        },
        Setting {
            key: "follow.install_windows",
            option: "install-window",
            variable: "DISTD_INSTALL_WINDOWS",
            value: "DAYS FROM-TO",
            several: true,
            default: "the whole week",
            help: "Parts of the week in which the device may begin to install a release, which may restart it. Before \
                   that, it fetches the release",
            set: |s, text| window(text).map(|window| s.install_windows.push(window)),
            show: |s| Shown::List(s.install_windows.iter().map(ToString::to_string).collect()),
        },
        Setting {
            key: "follow.time_zone",
            option: "time-zone",
            variable: "DISTD_TIME_ZONE",
            value: "ZONE",
            several: false,
            default: "the system's",
            help: "Time zone of these windows, as in Europe/Berlin",
            set: |s, text| time_zone(text).map(|zone| s.time_zone = Some(zone)),
            show: |s| optional(s.time_zone.as_ref().and_then(|zone| zone.iana_name())),
        },
        Setting {
            key: "follow.hooks",
            option: "hooks",
            variable: "DISTD_HOOKS",
            value: "DIR",
            several: false,
            default: "`/etc/distd/hooks.d`",
            help: "Directory with the programs `activate`, `health` and `rolled-back`, each run at that state",
            set: |s, text| filled(text, "directory").map(|dir| s.hooks = dir),
            show: |s| Shown::Text(s.hooks.display().to_string()),
        },
        Setting {
            key: "follow.hook_seconds",
            option: "hook-seconds",
            variable: "DISTD_HOOK_SECONDS",
            value: "SECONDS",
            several: false,
            default: "300",
            help: "Time limit of each of these programs",
            set: |s, text| {
                number(text, 1..=DAY_SECONDS).map(|seconds| s.hook_limit = Duration::from_secs(seconds))
            },
            show: |s| Shown::Number(s.hook_limit.as_secs().into()),
        },
        Setting {
            key: "follow.receipt_seconds",
            option: "receipt-seconds",
            variable: "DISTD_RECEIPT_SECONDS",
            value: "SECONDS",
            several: false,
            default: "3600",
            help: "Time within which a receipt that a parent keeps must be in the realm's log",
            set: |s, text| {
                number(text, 1..=7 * DAY_SECONDS)
                    .map(|seconds| s.receipt_bound = Duration::from_secs(seconds))
            },
            show: |s| Shown::Number(s.receipt_bound.as_secs().into()),
        },
        Setting {
            key: "follow.defer_seconds",
            option: "defer-seconds",
            variable: "DISTD_DEFER_SECONDS",
            value: "SECONDS",
            several: false,
            default: "604800",
            help: "Longest time for which somebody at the device can put updates off with `distd update defer`; 0 \
                   forbids it",
            set: |s, text| {
                number(text, 0..=366 * DAY_SECONDS).map(|seconds| s.defer_max = Duration::from_secs(seconds))
            },
            show: |s| Shown::Number(s.defer_max.as_secs().into()),
        },
        Setting {
            key: "gateway.listen",
            option: "gateway",
            variable: "DISTD_GATEWAY",
            value: "ADDR:PORT",
            several: false,
            default: "",
            help: "Address at which `distd agent` gives releases as files over HTTP to other updaters (gateway.md); \
                   plain on a loopback address, else with a certificate and tokens",
            set: |s, text| {
                parsed(text, "is not ADDRESS:PORT, as in 127.0.0.1:7480")
                    .map(|at| s.gateway_listen = Some(at))
            },
            show: |s| Shown::Text(s.gateway_listen.map_or_else(String::new, |at| at.to_string())),
        },
        Setting {
            key: "gateway.offer",
            option: "offer",
            variable: "DISTD_GATEWAY_OFFER",
            value: "PRODUCT[:CHANNEL]",
            several: true,
            default: "",
            help: "Products, or channels of products, that it offers. The releases of a channel are fetched as they \
                   come, others when they are asked for",
            set: |s, text| {
                parsed(text, "is not PRODUCT or PRODUCT:CHANNEL").map(|offer| s.gateway_offers.push(offer))
            },
            show: |s| Shown::List(s.gateway_offers.iter().map(ToString::to_string).collect()),
        },
        Setting {
            key: "gateway.directory",
            option: "gateway-directory",
            variable: "DISTD_GATEWAY_DIRECTORY",
            value: "DIR",
            several: false,
            default: "in the state directory, `gateway`",
            help: "Directory in which the gateway keeps releases",
            set: |s, text| filled(text, "directory").map(|dir| s.gateway_directory = Some(dir)),
            show: |s| path(s.gateway_directory.as_ref()),
        },
        Setting {
            key: "gateway.keep",
            option: "gateway-keep",
            variable: "DISTD_GATEWAY_KEEP",
            value: "N",
            several: false,
            default: "2",
            help: "Number of releases of a product that stay there; the one before is what the next is made from",
            set: |s, text| number(text, 1..=100).map(|keep| s.gateway_keep = keep),
            show: |s| Shown::Number(s.gateway_keep as i128),
        },
        Setting {
            key: "gateway.certificate",
            option: "gateway-certificate",
            variable: "DISTD_GATEWAY_CERTIFICATE",
            value: "FILE",
            several: false,
            default: "",
            help: "Certificate chain of the gateway in PEM form, one that the updaters of the site trust",
            set: |s, text| filled(text, "path").map(|file| s.gateway_certificate = Some(file)),
            show: |s| path(s.gateway_certificate.as_ref()),
        },
        Setting {
            key: "gateway.key",
            option: "gateway-key",
            variable: "DISTD_GATEWAY_KEY",
            value: "FILE",
            several: false,
            default: "",
            help: "Private key of that certificate in PEM form; nobody else may read it",
            set: |s, text| filled(text, "path").map(|file| s.gateway_key = Some(file)),
            show: |s| path(s.gateway_key.as_ref()),
        },
        Setting {
            key: "policy.downgrade",
            option: "downgrade",
            variable: "DISTD_DOWNGRADE",
            value: "WHEN",
            several: false,
            default: "`ordered`",
            help: "Whether a channel may lead this device to an older release: ordered (only where the channel orders \
                   it), never, or always (trust.md, \"Downgrades\")",
            set: |s, text| {
                word(text, "is none of ordered, never and always").map(|policy| s.downgrade = policy)
            },
            show: |s| Shown::Text(Word::from(s.downgrade).to_string()),
        },
    ],
    sections: &[LIMITS, apt::SECTION],
};
