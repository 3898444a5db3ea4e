//! What happens, told to whoever listens: one JSON object for each event in the life of the service.

use phalanx_shared::ipc::{SlotId, Word};
use phalanx_shared::log;
use phalanx_shared::stats::Snapshot;
use serde_json::{Map, Value, json};

use super::Supervisor;
use super::event::{Action, Event};
use crate::control::server::Server;
use crate::verdict::Report;

impl Supervisor {
    /// Tells an event: its name, and what there is to say of it (an object).
    fn tell_news(&mut self, name: &str, what: Value) {
        let Some(control) = &mut self.premises.control else { return };
        let mut object =
            Map::from_iter([("time".to_owned(), log::timestamp().into()), ("event".to_owned(), name.into())]);
        if let Value::Object(what) = what {
            object.extend(what);
        }
        control.tell_listeners(&Value::Object(object));
    }

    /// Whether there is anybody to make an object for.
    fn is_listened_to(&self) -> bool {
        self.premises.control.as_ref().is_some_and(Server::has_listeners)
    }

    /// Tells what is about to be done.
    pub(super) fn tell_action(&mut self, action: &Action) {
        if !self.is_listened_to() {
            return;
        }
        match action {
            Action::Clone(slot, birth) => {
                let (incarnation, generation) = (birth.incarnation.0, birth.generation.0);
                self.tell_news("clone", json!({"slot": slot.0, "incarnation": incarnation, "generation": generation}));
            }
            Action::Ready => self.tell_news("started", json!({"slots": self.roster.slots.len()})),
            Action::Steer(serving) => self.tell_news("steer", json!({"slots": serving})),
            Action::Lend(stuck, assistant, _) => {
                self.tell_news("assist", json!({"slot": stuck.0, "by": assistant.0}));
            }
            Action::Say(text) => self.tell_news("done", json!({"text": text})),
            Action::Warn(text) => self.tell_news("warning", json!({"text": text})),
            Action::Leave(outcome) => self.tell_news("stopped", json!({"why": outcome.as_ref().err()})),
            _ => {}
        }
    }

    /// Tells what has happened.
    pub(super) fn tell_event(&mut self, event: &Event) {
        if !self.is_listened_to() {
            return;
        }
        match event {
            Event::Heard(slot, message) if message.word == Word::Ready => {
                let incarnation = message.from.0;
                self.tell_news("ready", json!({"slot": slot.0, "incarnation": incarnation}));
                self.tell_rescue(*slot, incarnation);
            }
            Event::Stop { fast, .. } => self.tell_news("stop", json!({"fast": fast})),
            Event::Reload { read, .. } => self.tell_news("reload", json!({"refused": read.as_ref().err()})),
            Event::Upgrade { program, .. } => self.tell_news("upgrade", json!({"program": program})),
            Event::Scale { count, .. } => self.tell_news("scale", json!({"count": count})),
            Event::ScaleBy(by) => self.tell_news("scale", json!({"by": by})),
            Event::Recycle { slot, .. } => self.tell_news("recycle", json!({"slot": slot})),
            _ => {}
        }
    }

    /// Tells a death, and notes what its successor will be measured by.
    pub(super) fn tell_death(&mut self, slot: SlotId, report: &Report) {
        if !self.is_listened_to() {
            return;
        }
        if let Some(ground) = self.grounds.get(&slot) {
            self.before_rescue.insert(slot, ground.ledger.stats());
        }
        self.tell_news("death", json!(report));
    }

    /// Tells what a rescuer has made of what it found.
    fn tell_rescue(&mut self, slot: SlotId, incarnation: u32) {
        let now = self.grounds.get(&slot).map(|ground| ground.ledger.stats());
        let (Some(before), Some(now)) = (self.before_rescue.remove(&slot), now) else { return };
        let grown = |figure: fn(&Snapshot) -> u64| figure(&now).saturating_sub(figure(&before));
        let what = json!({
            "slot": slot.0,
            "incarnation": incarnation,
            "kept": grown(|stats| stats.rescued),
            "replayed": grown(|stats| stats.replayed),
            "continued": grown(|stats| stats.continued),
            "failed": grown(|stats| stats.failed),
            "closed": grown(|stats| stats.closed),
        });
        self.tell_news("rescue", what);
    }
}
