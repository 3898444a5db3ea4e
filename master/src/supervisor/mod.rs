//! The supervisor: the master's loop, and the doing of what the roster decides.

mod asked;
mod background;
mod backoff;
mod children;
mod crash_loop;
mod death;
mod event;
mod former;
mod ground;
mod handover;
mod health;
mod news;
mod offspring;
mod page;
mod recycling;
mod reload;
mod replacement;
mod report;
mod roster;
mod scaling;
mod seating;
mod silence;
mod slot;
mod stopping;
#[cfg(test)]
mod tests;
mod trial;
mod upgrade;
mod ward;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use phalanx_shared::config::Config;
use phalanx_shared::ipc::keeper::{Birth, Order};
use phalanx_shared::ipc::{Incarnation, Said, SlotId, ToWorker};
use phalanx_shared::ledger::Ledger;
use phalanx_shared::ledger::record::{Guilt, Owner, Record};
use phalanx_shared::state::heritage;
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::process;
use phalanx_shared::sys::rest;
use phalanx_shared::{debug, error, info, warn};
use phalanx_worker::app::Application;

use crate::cli::{DONE, FAILED, GAVE_UP};
use crate::control::server::Server;
use crate::daemonize::Herald;
use crate::listeners::{Bound, Change, Listeners, steer};
use crate::log_files::LogFiles;
use crate::memory_group::MemoryKills;
use crate::pid_file::PidFile;
use crate::privileges::Identity;
use crate::signals::{Signals, Wish};
use crate::upgrade::origin::Origin;
use crate::upgrade::rehearsal::Rehearsal;
use crate::upgrade::{fault, way_back};
use crate::verdict::{self, Ending};
use background::Backgrounds;
use event::{Action, Event};
use ground::{Common, FormerGround, Ground, Strangers};
use page::Predecessor;
use replacement::Departure;
use report::{Reporters, Stack};
use roster::Roster;
use slot::{Post, Slot};

/// What the supervisor takes over from the start: everything that could be refused is open.
pub(crate) struct Premises {
    pub(crate) config: Config,
    /// None for `serve`.
    pub(crate) file: Option<PathBuf>,
    pub(crate) identity: Identity,
    pub(crate) pid_file: Option<PidFile>,
    pub(crate) control: Option<Server>,
    pub(crate) listeners: Listeners,
    pub(crate) logs: LogFiles,
    pub(crate) signals: Signals,
    /// How this program was executed.
    pub(crate) origin: Origin,
    /// What it brings.
    pub(crate) application: Application,
}

/// The master.
pub(crate) struct Supervisor {
    premises: Premises,
    herald: Herald,
    roster: Roster,
    common: Common,
    grounds: BTreeMap<SlotId, Ground>,
    formers: Vec<FormerGround>,
    /// Of a program of another version.
    strangers: Vec<Strangers>,
    /// Connections that workers of another program may still have, of a version that this one cannot read.
    drained: u64,
    /// Sockets that slots have before they have a ground.
    handed_over: BTreeMap<SlotId, Vec<Bound>>,
    posts: HashMap<Pid, Post>,
    /// Ended before their keeper told their number, and when.
    unclaimed: HashMap<Pid, (Ending, Instant)>,
    reporters: Reporters,
    /// What the program runs beside the workers.
    backgrounds: Backgrounds,
    /// Counters of a slot at the last death in it, until a successor is ready.
    before_rescue: BTreeMap<SlotId, Snapshot>,
    memory_kills: MemoryKills,
    /// Totals of slots that are gone.
    retired: Snapshot,
    started: Instant,
    leaving: Option<Result<(), String>>,
    vacated: bool,
    /// This program only shows that it could serve.
    rehearses: bool,
    /// Children may have ended while nobody could be told.
    look_for_the_dead: bool,
    /// Signals that came when another program was about to be executed.
    unheard: Vec<(Wish, &'static str)>,
    /// The listeners that the reload under way brings and takes away.
    change: Option<Change>,
    rehearsal: Option<Rehearsal>,
    /// Another program is to be executed when all that has happened is dealt with: it would never hear of it.
    departure: Option<Departure>,
    /// The program that is rehearsed, to be executed if that goes well.
    successor: Option<OwnedFd>,
    /// The program before this one, to go back to.
    predecessor: Option<Predecessor>,
}

impl Supervisor {
    /// `first_slot` are the sockets that finding the ports bound.
    pub(crate) fn new(premises: Premises, first_slot: Vec<Bound>, herald: Herald) -> Supervisor {
        let count = reload::count_of(&premises.config);
        let roster = Roster::new(premises.config.clone(), count, Instant::now());
        let common = Common::new(&premises, first_slot, None);
        Supervisor::of(premises, herald, roster, common)
    }

    fn of(premises: Premises, herald: Herald, roster: Roster, common: Common) -> Supervisor {
        let hooks = premises.application.hooks.clone();
        let backgrounds = Backgrounds::new(hooks.backgrounds());
        let reporters = Reporters::new(hooks, premises.identity.clone());
        Supervisor {
            premises,
            herald,
            roster,
            common,
            grounds: BTreeMap::new(),
            formers: Vec::new(),
            strangers: Vec::new(),
            drained: 0,
            handed_over: BTreeMap::new(),
            posts: HashMap::new(),
            unclaimed: HashMap::new(),
            reporters,
            backgrounds,
            before_rescue: BTreeMap::new(),
            memory_kills: MemoryKills::now(),
            retired: Snapshot::default(),
            started: Instant::now(),
            leaving: None,
            vacated: false,
            rehearses: false,
            look_for_the_dead: false,
            unheard: Vec::new(),
            change: None,
            rehearsal: None,
            departure: None,
            successor: None,
            predecessor: None,
        }
    }

    /// The loop: sleep until something happens, decide, do. Returns the exit code.
    pub(crate) fn run(mut self) -> u8 {
        info!("phalanx {} {}", env!("CARGO_PKG_VERSION"), if self.roster.started { "takes over" } else { "starts" });
        let first =
            self.common.publish(0, &self.premises.config).and_then(|()| self.common.publish(1, &self.premises.config));
        if let Err(error) = first {
            let _returned = way_back::or_return::<()>(Err(error.to_string()));
            return self.leave(Err(format!("write the configuration for the workers: {error}")));
        }
        self.handle(Event::Tick);
        while self.leaving.is_none() {
            for event in self.next_events() {
                self.handle(event);
            }
            self.handle(Event::Tick);
            self.common.ward.expire();
            self.reporters.expire();
            self.mind_backgrounds();
            self.depart();
        }
        let outcome = self.leaving.take().unwrap_or(Ok(()));
        self.leave(outcome)
    }

    /// What runs beside the workers runs as long as they are to.
    fn mind_backgrounds(&mut self) {
        // While workers end, what they give it is still done.
        self.backgrounds.want(self.roster.started && !self.rehearses && self.leaving.is_none());
        if self.roster.is_stopping() {
            return;
        }
        let (grounds, formers) = (&self.grounds, &self.formers);
        let ledgers = || {
            let formers = formers.iter().map(|former| &former.ground);
            grounds.values().chain(formers).map(|ground| ground.ledger.clone()).collect()
        };
        self.backgrounds.begin_due(&self.premises.identity, ledgers);
    }

    fn handle(&mut self, event: Event) {
        self.tell_event(&event);
        let actions = self.roster.react(event, Instant::now());
        self.keep_way_back();
        let mut consequences = Vec::new();
        for action in actions {
            self.tell_action(&action);
            consequences.extend(self.perform(action));
        }
        for slot in self.roster.emptied() {
            self.close(slot);
        }
        self.keep_way_back();
        for event in consequences {
            self.handle(event);
        }
    }

    /// Does it; what that makes happen at once comes back.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Open(slot) => return Some(Event::Opened(slot, self.open(slot))),
            Action::Publish(number, config) => self.publish(number, &config),
            Action::Seat(config) => return Some(self.seat(config)),
            Action::Listen => return Some(self.listen()),
            Action::Unseat => self.unseat(),
            Action::ShutLeaving => self.shut_leaving(),
            Action::CloseLeaving => self.close_leaving(),
            Action::Clone(slot, birth) => return self.order_clone(slot, &birth),
            Action::Dismiss(slot, ground) => self.dismiss(slot, ground),
            Action::Tell(post, to, word) => self.tell(post, Said { to, word }),
            Action::Kill(pid, signal) => end(pid, signal),
            Action::Examine(slot, incarnation, pid) => {
                return Some(Event::Examined(slot, incarnation, rest::scheduling(pid)));
            }
            Action::DescribeSuspect(slot, incarnation) => self.describe_suspect(slot, incarnation),
            Action::ShowStack(slot, pid, thread) => {
                self.reporters.show(Stack { slot, pid, thread }, &self.roster.config.master);
            }
            Action::Lend(stuck, assistant, incarnation) => self.lend(stuck, assistant, incarnation),
            Action::Condemn(post, guilt) => self.condemn(post, guilt),
            Action::Report(post, dead) => {
                if let Some(ground) = self.ground(post) {
                    let report = verdict::report(&ground.ledger, post.slot, post.lane, &dead);
                    self.tell_death(post.slot, &report);
                    if dead.serious {
                        self.common.ward.note(&report, &self.roster.config.quarantine);
                    }
                    self.reporters.take(report, dead.serious, &self.roster.config.master);
                }
            }
            Action::InstallLogs(slot) => self.install_logs(slot),
            Action::Steer(serving) => self.steer(serving.as_deref()),
            Action::ReadConfig(client) => return self.read_config(client),
            Action::Adopt(config) => {
                phalanx_shared::log::configure(crate::log_files::ERROR_LOG, config.log.level);
                self.settle_listeners();
            }
            Action::Reply(client, answer) => self.reply(client, &answer),
            Action::Say(text) => info!("{text}"),
            Action::Warn(text) => warn!("{text}"),
            Action::Ready if self.rehearses => {
                self.herald.ready("");
                return Some(Event::Stop { fast: true, client: None });
            }
            Action::Ready => self.announce(),
            Action::Rehearse(program) => return self.begin_rehearsal(program).err().map(Event::NotExecuted),
            Action::EndRehearsal => (self.rehearsal, self.successor) = (None, None),
            Action::TakeOver(client) => self.departure = Some(Departure::Onward(client)),
            Action::GoBack(client, why) => self.departure = Some(Departure::Back(client, why)),
            Action::Confirm => {
                self.predecessor = None;
                way_back::forget();
                heritage::forget_the_rest();
            }
            Action::LookForAnybody(slot, ground) => {
                let deserted = self.ground(Post { slot, ground, lane: 0 }).is_some_and(Ground::is_deserted);
                return deserted.then_some(Event::Deserted(slot, ground));
            }
            Action::LookInto(slot, ground) => {
                let left = self.ground(Post { slot, ground, lane: 0 }).is_some_and(Ground::has_connections);
                return (!left).then_some(Event::Emptied(slot, ground));
            }
            Action::Leave(outcome) => {
                self.vacate();
                // The first word counts: what follows an end is not a reason for it.
                self.leaving.get_or_insert(outcome);
            }
        }
        None
    }

    // ---- slots ----

    fn open(&mut self, slot: SlotId) -> Result<Pid, String> {
        if self.predecessor.is_some() {
            fault::pass("opening");
        }
        if self.all_grounds().any(|(of, _)| of == slot) {
            return self.replace(slot);
        }
        let listeners = match (self.handed_over.get(&slot), std::mem::take(&mut self.common.first_slot)) {
            (Some(handed_over), _) => handed_over.clone(),
            (None, first) if !first.is_empty() => first,
            _ => self.premises.listeners.bind_slot()?,
        };
        let (ground, keeper) = self.common.open(self.number(slot), listeners, &self.premises, self.ledgers(), &[])?;
        self.grounds.insert(slot, ground);
        self.handed_over.remove(&slot);
        Ok(keeper)
    }

    /// The slot with the number of the ground that it is to stand on.
    fn number(&self, slot: SlotId) -> (SlotId, u32) {
        (slot, self.roster.slots.get(&slot).map_or(0, |slot| slot.ground))
    }

    /// The ground of that number, present or former.
    fn ground(&self, post: Post) -> Option<&Ground> {
        self.all_grounds().map(|(_, ground)| ground).find(|ground| ground.number == post.ground)
    }

    /// Present and former grounds, with their slots.
    fn all_grounds(&self) -> impl Iterator<Item = (SlotId, &Ground)> {
        let present = self.grounds.iter().map(|(slot, ground)| (*slot, ground));
        present.chain(self.formers.iter().map(|former| (former.slot, &former.ground)))
    }

    /// The ledgers of other slots than a new one.
    fn ledgers(&self) -> Vec<Ledger> {
        self.all_grounds().map(|(_, ground)| ground.ledger.clone()).collect()
    }

    /// A slot that has lost its keeper gets another ground. What it stood on stays until its workers have given what they have.
    fn replace(&mut self, slot: SlotId) -> Result<Pid, String> {
        let listeners = self.all_grounds().find(|(of, _)| *of == slot).map(|(_, ground)| ground.listeners.clone());
        let listeners = listeners.unwrap_or_default();
        let (own, others): (Vec<_>, Vec<_>) = self.all_grounds().partition(|(of, _)| *of == slot);
        let own: Vec<&Ground> = own.into_iter().map(|(_, ground)| ground).collect();
        let strangers = others.into_iter().map(|(_, ground)| ground.ledger.clone()).collect();
        let (ground, keeper) = self.common.open(self.number(slot), listeners, &self.premises, strangers, &own)?;
        if let Some(change) = &self.change {
            change.of(slot).iter().for_each(|bound| ground.seat(bound));
        }
        if let Some(old) = self.grounds.insert(slot, ground) {
            self.formers.push(FormerGround { slot, ground: old });
        }
        Ok(keeper)
    }

    /// Keeps the totals of a former ground, and nothing else of it.
    fn dismiss(&mut self, slot: SlotId, number: u32) {
        let is_gone = |strangers: &mut Strangers| (strangers.slot, strangers.ground) == (slot, number);
        let gone = self.strangers.extract_if(.., is_gone).collect();
        self.put_aside(gone);
        if self.strangers.is_empty() {
            self.drained = 0;
        }
        for former in self.formers.extract_if(.., |former| (former.slot, former.ground.number) == (slot, number)) {
            self.retired.add(&ground::final_stats(&former.ground.ledger));
            self.common.forget_connections(&former.ground.ledger);
            ground::give_back(&former.ground.ledger);
        }
        let present = self.grounds.get(&slot).map(|ground| ground.order(&Order::Forget { former: number }, None));
        if let Some(Err(error)) = present {
            debug!("order a keeper to forget a former table: {error}");
        }
    }

    fn close(&mut self, slot: SlotId) {
        if let Some(ground) = self.grounds.remove(&slot) {
            offspring::end(&ground.ledger);
            self.retired.add(&ground::final_stats(&ground.ledger));
            self.common.forget_connections(&ground.ledger);
            ground.stop_listening();
            self.change.iter_mut().for_each(|change| change.forget_slot(slot));
            ground::give_back(&ground.ledger);
            info!("slot {} is closed", slot.0);
        }
    }

    fn publish(&mut self, number: usize, config: &Config) {
        if let Err(error) = self.common.publish(number, config) {
            error!("write the configuration for the workers: {error}");
        }
    }

    fn order_clone(&mut self, slot: SlotId, birth: &Birth) -> Option<Event> {
        let ground = self.grounds.get(&slot)?;
        debug!("slot {}: clone incarnation {}", slot.0, birth.incarnation.0);
        ground.ledger.lane(birth.lane).set_wish(None);
        let blueprint = self.common.blueprints.get(birth.blueprint)?.as_fd();
        match ground.order(&Order::Clone(birth.clone()), Some(blueprint)) {
            Ok(()) => None,
            Err(error) => Some(Event::Born(slot, birth.incarnation, Err(format!("order a clone: {error}")))),
        }
    }

    fn tell(&self, post: Post, said: Said) {
        if let Some(ground) = self.ground(post)
            && let Err(error) = ground.tell(post.lane, said.clone())
        {
            warn!("slot {}: tell the worker on lane {}: {error}", post.slot.0, post.lane);
        }
        if matches!(said.word, ToWorker::Yield | ToWorker::Drain(_)) {
            let strangers = self.strangers.iter().filter(|it| (it.slot, it.ground) == (post.slot, post.ground));
            strangers.for_each(|strangers| strangers.have_drained(post.lane));
        }
    }

    fn condemn(&self, post: Post, guilt: Guilt) {
        let (Some(ground), Some(known)) = (self.ground(post), self.roster.slots.get(&post.slot)) else { return };
        let lane = ground.ledger.lane(post.lane);
        // It is the loop that hangs, whatever a thread of the pool did since.
        let accused = if guilt == Guilt::Hang { lane.current() } else { lane.accused() };
        let suspect = accused.and_then(|fd| ground.ledger.record(fd));
        // A connection that a living worker has by now is not the dead one's to be blamed for.
        let is_of_the_dead = |record: &Record| match record.owner() {
            Some(Owner::Worker(owner)) => known.workers.iter().all(|worker| worker.incarnation != owner),
            _ => false,
        };
        if let Some(record) = suspect.filter(is_of_the_dead) {
            record.condemn(guilt);
        }
    }

    /// The request that a silent worker is busy with, for the log.
    fn describe_suspect(&self, slot: SlotId, incarnation: Incarnation) {
        let worker =
            self.roster.slots.get(&slot).and_then(|slot| slot.workers.iter().find(|it| it.incarnation == incarnation));
        let Some((post, ground)) = worker.and_then(|worker| Some((worker.post, self.ground(worker.post)?))) else {
            return;
        };
        let fd = ground.ledger.lane(post.lane).current();
        if let Some(busy) = fd.and_then(|fd| verdict::in_flight(&ground.ledger, &ground.ledger.record(fd)?)) {
            warn!("worker {} is at `{}` of {} ({})", slot.0, busy.request, busy.peer, busy.phase);
        }
    }

    /// Puts a slot's TCP sockets into the table of another, and tells that one's worker.
    fn lend(&self, stuck: SlotId, assistant: SlotId, incarnation: Incarnation) {
        let (Some(from), Some(to)) = (self.grounds.get(&stuck), self.grounds.get(&assistant)) else { return };
        let cookies = from.lend_to(to);
        let worker = self.roster.slots.get(&assistant).and_then(Slot::serving);
        if let Some(worker) = worker.filter(|worker| worker.incarnation == incarnation && !cookies.is_empty()) {
            self.tell(worker.post, Said { to: incarnation, word: ToWorker::Assist(cookies) });
        }
    }

    fn install_logs(&self, slot: SlotId) {
        let Some(ground) = self.grounds.get(&slot) else { return };
        for number in &self.common.log_numbers {
            ground.install(&phalanx_shared::sys::table::borrow(*number));
        }
    }

    fn steer(&self, serving: Option<&[u32]>) {
        let Some((_, ground)) = self.all_grounds().find(|(slot, _)| *slot == SlotId(0)) else { return };
        if let Err(error) = steer(&ground.listeners, serving) {
            warn!("steer new connections: {error}; some that arrive while a slot closes may be refused");
        }
    }

    fn announce(&mut self) {
        let addresses = self.premises.listeners.addresses();
        let count = self.roster.slots.len();
        info!("ready: {count} workers on {}", addresses.join(", "));
        if self.premises.file.is_none() {
            self.say_what_to_try(&addresses);
        }
        self.herald.ready(&format!("started: pid {}, {count} workers on {}", std::process::id(), addresses.join(", ")));
    }

    /// For who has just tried `phalanx serve`.
    fn say_what_to_try(&self, addresses: &[String]) {
        let pids: Vec<String> =
            self.roster.slots.values().filter_map(|slot| slot.serving()?.pid).map(|pid| pid.to_string()).collect();
        for address in addresses {
            info!("serving http://{address}/ (stop with Ctrl-C)");
        }
        info!(
            "try: curl http://{}/ ; then kill a worker under load, nobody notices: kill -9 {}",
            addresses[0],
            pids.join(" ")
        );
    }

    // ---- the end ----

    /// Closes the listeners, ends the keepers and takes the service's files away.
    fn vacate(&mut self) {
        if std::mem::replace(&mut self.vacated, true) {
            return;
        }
        self.backgrounds.end(background::PATIENCE);
        let slots = self.roster.slots.values();
        let keepers: Vec<Pid> = slots.flat_map(|slot| slot.keeper.into_iter().chain(slot.former_keepers())).collect();
        for pid in keepers {
            end(pid, Signal::SIGKILL);
            let _reaped_already = waitpid(pid, None);
        }
        self.all_grounds().for_each(|(_, ground)| offspring::end(&ground.ledger));
        self.grounds.clear();
        self.formers.clear();
        self.common.first_slot.clear();
        self.premises.listeners.remove();
        if let Some(control) = &self.premises.control {
            control.remove();
        }
        if let Some(pid_file) = &self.premises.pid_file {
            pid_file.remove();
        }
    }

    fn leave(&mut self, outcome: Result<(), String>) -> u8 {
        match outcome {
            Ok(()) => {
                info!("stopped");
                DONE
            }
            Err(why) => {
                error!("{why}");
                self.vacate();
                self.herald.failed(&why);
                if self.roster.gave_up { GAVE_UP } else { FAILED }
            }
        }
    }
}

fn end(pid: Pid, signal: Signal) {
    // Only ever a child that has not been reaped: the number cannot be another process's.
    if process::is_child(pid) {
        let _gone_already = kill(pid, signal);
    }
}

/// A sealed memfd with `config` in it.
fn blueprint(config: &Config) -> std::io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let fd = memfd_create("phalanx-blueprint", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(&config.to_blueprint()?)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(OwnedFd::from(file))
}

/// Puts `fresh` in the place of `old` under the same number.
fn put_in_place(old: &OwnedFd, fresh: &OwnedFd) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    process::install(fresh.as_fd(), old.as_raw_fd())
}
