//! The boot loader of RAUC, by the D-Bus interface of its service,
//! `de.pengutronix.rauc.Installer`. RAUC knows its boot loader and its slots, and distd writes the
//! slot.
//!
//! RAUC has no order that holds for one boot. A slot that is marked active starts until its boot
//! loader's own counter of tries is used up, and then the other one does. The count is the
//! integrator's; RAUC's examples use 3.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use distd_core::names::Name;
use zbus::wire::{OwnedVariant, Variant};
use zbus::{Connection, Message};

use super::{About, Loader, Slot, Spare, unusable};

const SERVICE: &str = "de.pengutronix.rauc";
const PATH: &str = "/";
const INTERFACE: &str = "de.pengutronix.rauc.Installer";

/// Time within which the service answers; it may have to be started, and calls the boot loader.
const ANSWER: Duration = Duration::from_secs(60);

/// The service.
pub(super) struct Rauc {
    bus: Connection,
}

/// State of the slot from which the system was started, in [`SlotStatus`].
const BOOTED: &str = "booted";

/// Begin of the names of errors that are of the bus and not of RAUC.
const BUS_ERRORS: &str = "org.freedesktop.DBus.";

/// Name and properties of each slot.
type SlotStatus = Vec<(String, HashMap<String, OwnedVariant>)>;

fn away(error: zbus::Error, what: &str) -> anyhow::Error {
    let error = anyhow::Error::new(error).context(format!("RAUC's service did not {what}"));
    unusable(error, "look at the service: systemctl status rauc, rauc status")
}

fn text(properties: &HashMap<String, OwnedVariant>, key: &str) -> Option<String> {
    match properties.get(key).map(|value| &**value) {
        Some(Variant::Str(text)) => Some(text.to_string()),
        _ => None,
    }
}

impl Rauc {
    /// Opens the service on the system's bus, and checks that its slots are those of the device.
    ///
    /// # Errors
    /// Failures with [`Code::Local`](crate::failure::Code::Local) when the service does not answer,
    /// or has other slots.
    pub(super) async fn open(slots: &[Slot; 2]) -> anyhow::Result<Self> {
        let bus = zbus::connection::Builder::system().method_timeout(ANSWER).build().await;
        let bus = bus.context("the system's message bus (D-Bus) does not answer");
        let bus = bus.map_err(|error| unusable(error, "start it: systemctl start dbus"))?;
        let rauc = Self { bus };
        let status = rauc.status().await?;
        for slot in slots {
            let found = status.iter().find(|(name, _)| name == slot.name.as_str());
            let Some((_, properties)) = found else {
                let known = status.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
                let error = anyhow!("RAUC has no slot {}; it has {known}", slot.name);
                return Err(unusable(error, "use RAUC's names of the slots in follow.slots"));
            };
            let device = text(properties, "device").unwrap_or_default();
            let is_same = super::one_name(device.as_ref()).is_ok_and(|device| device == slot.device);
            if !is_same {
                let error = anyhow!("RAUC's slot {} is {device}, not {}", slot.name, slot.device.display());
                return Err(unusable(error, "use RAUC's devices of the slots in follow.slots"));
            }
        }
        Ok(rauc)
    }

    async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        self.bus.call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body).await
    }

    async fn status(&self) -> anyhow::Result<SlotStatus> {
        let answer = self.call("GetSlotStatus", &()).await;
        let status = answer.and_then(|answer| answer.body().deserialize());
        status.map_err(|error| away(error, "tell the state of its slots"))
    }

    async fn mark(&self, state: &str, slot: &Name) -> anyhow::Result<()> {
        let marked = self.call("Mark", &(state, slot.as_str())).await;
        marked.map(drop).map_err(|error| away(error, &format!("mark slot {slot} {state}")))
    }
}

#[async_trait]
impl Loader for Rauc {
    async fn booted(&self) -> anyhow::Result<Option<Name>> {
        let status = self.status().await?;
        let booted =
            status.iter().find(|(_, properties)| text(properties, "state").as_deref() == Some(BOOTED));
        Ok(booted.and_then(|(name, _)| name.parse().ok()))
    }

    async fn refresh(&self, slot: &Name) -> anyhow::Result<()> {
        // The boot loaders of RAUC count down at each start.
        self.mark("good", slot).await
    }

    async fn default_slot(&self) -> anyhow::Result<Option<Name>> {
        let answer = self.call("GetPrimary", &()).await;
        let name = answer.and_then(|answer| answer.body().deserialize::<String>());
        match name {
            Ok(name) => Ok(name.parse().ok()),
            // RAUC itself answers: no slot can be started. D-Bus has errors of its own.
            Err(zbus::Error::MethodError(name, ..)) if !name.starts_with(BUS_ERRORS) => Ok(None),
            Err(error) => Err(away(error, "name its primary slot")),
        }
    }

    /// Without a primary slot the tries of the slot that runs are used up, as after each start
    /// where the boot loader's script gives one try.
    async fn would_leave(&self, booted: &Name) -> anyhow::Result<bool> {
        Ok(self.default_slot().await?.is_none_or(|primary| primary != *booted))
    }

    async fn try_once(&self, slot: &Name, _: &About) -> anyhow::Result<()> {
        self.mark("active", slot).await
    }

    async fn keep(&self, slot: &Name, other: &Name, spare: Spare) -> anyhow::Result<()> {
        // RAUC takes the first good slot of its order: the other one must not be good.
        self.mark("active", slot).await?;
        self.mark("good", slot).await?;
        match spare {
            Spare::Unusable => self.mark("bad", other).await,
            Spare::Whole => Ok(()),
        }
    }
}
