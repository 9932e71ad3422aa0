//! Many commands in one call: each is checked, authorized and answered as in a call of its own; all of one partition that are good go to
//! its writer together, in order, and those of other instances' partitions are handed on together.
//!
//! Left out: atomicity, which there is none: one command's failure is its own. Invariant: answers stand in the order of their commands,
//! one for each.

use std::collections::BTreeMap;

use exchequer_budget::Command;
use exchequer_event::v1::{self, decide_answer::Answer, decide_command::Command as Asked};
use futures::future::join_all;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tonic_types::StatusExt as _;

use super::{Answered, Api, Asking, Reply, place::Place, who::Who};
use crate::{ask, route::Peer};

/// Commands in one call at most.
pub(super) const MAX_COMMANDS: usize = 1024;

pub(super) async fn decide(api: &Api, request: Request<v1::DecideRequest>) -> Reply<v1::DecideResponse> {
    let metadata = request.metadata().clone();
    let (who, message) = Who::open(request)?;
    if !(1..=MAX_COMMANDS).contains(&message.commands.len()) {
        return Err(ask::invalid("commands", "must be 1 to 1024"));
    }
    let answers = decide_all(api, &who, &metadata, message.commands).await;
    Ok(Response::new(v1::DecideResponse { answers }))
}

/// The answers to commands, in their order. `metadata` has the caller's token, for what is handed on.
pub(super) async fn decide_all(
    api: &Api,
    who: &Who,
    metadata: &MetadataMap,
    commands: Vec<v1::DecideCommand>,
) -> Vec<v1::DecideAnswer> {
    let mut answers = vec![v1::DecideAnswer::default(); commands.len()];
    let mut here: BTreeMap<u16, Vec<Good>> = BTreeMap::new();
    let mut there: BTreeMap<String, (Peer, Vec<Handed>)> = BTreeMap::new();
    let mut routes: BTreeMap<u16, Result<Option<Peer>, Status>> = BTreeMap::new();
    for (at, command) in commands.into_iter().enumerate() {
        let Some(form) = Form::of(&command) else {
            answers[at] = failure(at, None, &ask::invalid("", "names no command"));
            continue;
        };
        let route = match api.partition(Form::place(&command)) {
            // Asked once for all of a partition.
            Some(partition) => {
                let asked = routes.entry(partition);
                asked.or_insert_with(|| api.shared.router.elsewhere(metadata, partition)).clone()
            }
            None => Ok(None),
        };
        match route {
            Ok(None) => match form.command(command, api, who).await {
                Ok(command) => {
                    let partition = api.partition_of(command.tenant());
                    here.entry(partition).or_default().push((at, form, command));
                }
                Err(status) => answers[at] = failure(at, Some(form), &status),
            },
            Ok(Some(peer)) => {
                let handed = there.entry(peer.address.clone()).or_insert_with(|| (peer, Vec::new()));
                handed.1.push((at, form, command));
            }
            Err(status) => answers[at] = failure(at, Some(form), &status),
        }
    }
    let here = here.into_iter().map(|(partition, good)| decide_here(api, partition, good));
    let there = there.into_values().map(|(peer, handed)| decide_there(peer, metadata, handed));
    let (here, there) = tokio::join!(join_all(here), join_all(there));
    for (at, answer) in here.into_iter().chain(there).flatten() {
        answers[at] = answer;
    }
    answers
}

/// A command that was found good, and its place in the call.
type Good = (usize, Form, Command);
/// A command of another instance, and its place in the call.
type Handed = (usize, Form, v1::DecideCommand);
/// Answers and their places.
type Answers = Vec<(usize, v1::DecideAnswer)>;

async fn decide_here(api: &Api, partition: u16, good: Vec<Good>) -> Answers {
    let (places, commands): (Vec<_>, Vec<_>) =
        good.into_iter().map(|(at, form, command)| ((at, form), command)).unzip();
    match api.submit_all(partition, commands).await {
        Ok(decided) => {
            let answers = places.into_iter().zip(decided).map(|((at, form), decided)| {
                let answer = match decided.and_then(|answered| form.answer(answered)) {
                    Ok(answer) => v1::DecideAnswer { answer: Some(answer) },
                    Err(status) => failure(at, Some(form), &status),
                };
                (at, answer)
            });
            answers.collect()
        }
        Err(status) => all_failed(&places, &status),
    }
}

async fn decide_there(peer: Peer, metadata: &MetadataMap, handed: Vec<Handed>) -> Answers {
    let (places, commands): (Vec<_>, Vec<_>) =
        handed.into_iter().map(|(at, form, command)| ((at, form), command)).unzip();
    let count = commands.len();
    let request = peer.request(v1::DecideRequest { commands }, metadata);
    match peer.client().decide(request).await.map(|response| response.into_inner().answers) {
        Ok(answers) if answers.len() == count => {
            let numbered = places.into_iter().zip(answers).enumerate();
            let renumbered = numbered.map(|(there, ((at, _), mut answer))| {
                if let Some(Answer::Failure(failure)) = &mut answer.answer
                    && let Some(path) = failure.field.strip_prefix(&format!("commands[{there}]"))
                {
                    failure.field = format!("commands[{at}]{path}");
                }
                (at, answer)
            });
            renumbered.collect()
        }
        Ok(_) => all_failed(&places, &Status::internal("the partition's owner left answers out")),
        Err(status) => all_failed(&places, &peer.failed(status)),
    }
}

fn all_failed(places: &[(usize, Form)], status: &Status) -> Answers {
    places.iter().map(|&(at, form)| (at, failure(at, Some(form), status))).collect()
}

/// Which of the commands one is.
#[derive(Clone, Copy, Debug)]
enum Form {
    Reserve,
    Extend,
    Settle,
    Void,
    Draw,
    Report,
}

impl Form {
    fn of(command: &v1::DecideCommand) -> Option<Self> {
        Some(match command.command.as_ref()? {
            Asked::Reserve(_) => Self::Reserve,
            Asked::Extend(_) => Self::Extend,
            Asked::Settle(_) => Self::Settle,
            Asked::Void(_) => Self::Void,
            Asked::Draw(_) => Self::Draw,
            Asked::Report(_) => Self::Report,
        })
    }

    /// Its field in a `DecideCommand`.
    fn field(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Extend => "extend",
            Self::Settle => "settle",
            Self::Void => "void",
            Self::Draw => "draw",
            Self::Report => "report",
        }
    }

    fn place(command: &v1::DecideCommand) -> Place<'_> {
        match &command.command {
            Some(Asked::Reserve(request)) => request.place(),
            Some(Asked::Extend(request)) => request.place(),
            Some(Asked::Settle(request)) => request.place(),
            Some(Asked::Void(request)) => request.place(),
            Some(Asked::Draw(request)) => request.place(),
            Some(Asked::Report(request)) => request.place(),
            None => Place::Scope(""),
        }
    }

    fn permitted(self, who: &Who) -> Result<(), Status> {
        match self {
            Self::Reserve => v1::ReserveRequest::permitted(who),
            Self::Extend => v1::ExtendRequest::permitted(who),
            Self::Settle => v1::SettleRequest::permitted(who),
            Self::Void => v1::VoidRequest::permitted(who),
            Self::Draw => v1::DrawLeaseRequest::permitted(who),
            Self::Report => v1::ReportUsageRequest::permitted(who),
        }
    }

    async fn command(self, command: v1::DecideCommand, api: &Api, who: &Who) -> Result<Command, Status> {
        self.permitted(who)?;
        let known = api.known_tenant(who, Self::place(&command)).await?;
        match command.command {
            Some(Asked::Reserve(request)) if request.dry_run => {
                Err(ask::invalid("dry_run", "must be false here: nothing would be decided"))
            }
            Some(Asked::Reserve(request)) => request.command(api, who, known),
            Some(Asked::Extend(request)) => request.command(api, who, known),
            Some(Asked::Settle(request)) => request.command(api, who, known),
            Some(Asked::Void(request)) => request.command(api, who, known),
            Some(Asked::Draw(request)) => request.command(api, who, known),
            Some(Asked::Report(request)) => request.command(api, who, known),
            None => Err(ask::invalid("", "names no command")),
        }
    }

    fn answer(self, answered: Answered) -> Result<Answer, Status> {
        match self {
            Self::Reserve => v1::ReserveRequest::answer(answered).map(Answer::Reserve),
            Self::Extend => v1::ExtendRequest::answer(answered).map(Answer::Extend),
            Self::Settle => v1::SettleRequest::answer(answered).map(Answer::Settle),
            Self::Void => v1::VoidRequest::answer(answered).map(Answer::Void),
            Self::Draw => v1::DrawLeaseRequest::answer(answered).map(Answer::Draw),
            Self::Report => v1::ReportUsageRequest::answer(answered).map(Answer::Report),
        }
    }
}

/// A single call's failure, with the path of its first field at fault as seen from the batch.
fn failure(at: usize, form: Option<Form>, status: &Status) -> v1::DecideAnswer {
    let violations = status.get_details_bad_request().map(|details| details.field_violations);
    let field = violations.into_iter().flatten().next().map(|violation| violation.field);
    let field = field.map(|field| match form {
        Some(form) if !field.is_empty() => format!("commands[{at}].{}.{field}", form.field()),
        Some(form) => format!("commands[{at}].{}", form.field()),
        None => format!("commands[{at}]"),
    });
    let failure = v1::DecideFailure {
        code: i32::from(status.code()).unsigned_abs(),
        message: status.message().to_owned(),
        field: field.unwrap_or_default(),
    };
    v1::DecideAnswer { answer: Some(Answer::Failure(failure)) }
}
