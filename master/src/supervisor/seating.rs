//! Listeners come and go with a reload: bound and put into the slots' tables before anybody boots, listening when every
//! successor is ready, and taken away when nobody comes by them any more.

use std::time::Duration;

use phalanx_shared::config::{Config, Listen};
use phalanx_shared::ipc::SlotId;
use phalanx_shared::warn;

use super::Supervisor;
use super::event::{Action, Event};
use super::ground::Ground;
use super::roster::Roster;

/// How long those who had begun to connect to an address that is taken away may still come in: the network has to bring what
/// they say. Who comes then is refused.
const LINGER: Duration = Duration::from_secs(1);

/// How long workers may take to let go of a listener that was shut: what stands in its place afterwards would tell them nothing.
const LETTING_GO: Duration = Duration::from_millis(300);

impl Supervisor {
    /// Binds what a configuration brings and finds a seat for each of its listeners.
    pub(super) fn seat(&mut self, mut config: Box<Config>) -> Event {
        Event::Seated(self.bind_what_comes(&mut config).map(|()| config))
    }

    fn bind_what_comes(&mut self, config: &mut Config) -> Result<(), String> {
        let room = self.grounds.values().map(Ground::room).min().unwrap_or(0);
        let named = || self.all_grounds().flat_map(|(_, ground)| ground.named_seats()).collect();
        self.premises.listeners.assign(&mut config.listen, named, room)?;
        let slots: Vec<SlotId> = self.grounds.keys().copied().collect();
        let change = self.premises.listeners.change(&config.listen, &slots)?;
        for (slot, ground) in &self.grounds {
            change.of(*slot).iter().for_each(|bound| ground.seat(bound));
        }
        // Workers of the new generation accept from them what is queued there.
        let stays = |seat| config.listen.iter().any(|listen| listen.seat == seat);
        let leaving = self.roster.config.listen.iter().filter(|listen| !stays(listen.seat)).cloned();
        let leaving: Vec<Listen> = leaving.map(|listen| Listen { leaving: true, ..listen }).collect();
        config.listen.extend(leaving);
        self.change = Some(change);
        Ok(())
    }

    /// Has them listen.
    pub(super) fn listen(&self) -> Event {
        Event::Listening(self.change.as_ref().map_or(Ok(()), |change| change.listen()))
    }

    /// Never mind.
    pub(super) fn unseat(&mut self) {
        let Some(change) = self.change.take() else { return };
        for (slot, ground) in &self.grounds {
            change.of(*slot).iter().for_each(|bound| self.common.vacate_seat(ground, bound.seat));
        }
        change.forget();
    }

    /// What came stays, what goes takes nobody new in.
    pub(super) fn settle_listeners(&mut self) {
        let Some(change) = self.change.take() else { return };
        for (slot, ground) in &mut self.grounds {
            ground.listeners.extend_from_slice(change.of(*slot));
        }
        for bound in self.all_grounds().flat_map(|(_, ground)| &ground.listeners) {
            if let Err(error) = change.apply_to(bound) {
                warn!("turn away who comes to an address that is no longer listened on: {error}");
            }
        }
        self.premises.listeners.adopt(change);
    }

    /// Takes out of service what nobody has come by for a while.
    pub(super) fn shut_leaving(&mut self) {
        let leaving = self.premises.listeners.leaving();
        for bound in self.all_grounds().flat_map(|(_, ground)| &ground.listeners) {
            if leaving.contains(&bound.seat) {
                bound.stop_listening();
            }
        }
    }

    /// Takes it away.
    pub(super) fn close_leaving(&mut self) {
        for seat in self.premises.listeners.dismiss_leaving() {
            let grounds = self.grounds.values_mut().chain(self.formers.iter_mut().map(|former| &mut former.ground));
            for ground in grounds {
                ground.listeners.retain(|bound| bound.seat != seat);
                self.common.vacate_seat(ground, seat);
            }
        }
    }
}

impl Roster {
    /// Whether listeners are on their way out.
    pub(super) fn is_losing_listeners(&self) -> bool {
        self.config.listen.iter().any(|listen| listen.leaving)
    }

    pub(super) fn finish_losing_listeners(&mut self) {
        let age = self.now - self.adopted;
        if !self.is_losing_listeners() || self.reload.is_some() || age < LINGER {
            return;
        }
        if !self.leaving_is_shut {
            self.leaving_is_shut = true;
            self.act(Action::ShutLeaving);
        }
        if age < LINGER + LETTING_GO {
            return;
        }
        self.leaving_is_shut = false;
        self.config.listen.retain(|listen| !listen.leaving);
        self.act(Action::CloseLeaving);
        self.act(Action::Publish(self.blueprint, Box::new(self.config.clone())));
    }
}
