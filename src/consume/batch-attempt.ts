import type { Message } from "../define/message.ts";
import { backoffMs } from "../define/retry.ts";
import { SortieError, textOf } from "../errors.ts";
import { pause } from "../nats/within.ts";
import { isPromise } from "../schema.ts";
import {
  type Again,
  attempt,
  failed,
  type Outcome,
  returned,
  sendAll,
  succeeded,
  type Try,
  withStart,
} from "./attempt.ts";
import { type Failures, failuresIn, notOfBatch } from "./batch.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding, HandlerContext } from "./handler.ts";
import { type Held, type Member, memberOf } from "./held.ts";
import type { Attempts } from "./ledger.ts";
import { read } from "./message.ts";
import { Outbox } from "./outbox.ts";
import { decideTogether } from "./settlement.ts";

/** A message of a batch. */
interface BatchMember extends Member {
  /** How many of its starts before were just before, in place. */
  readonly inPlace: number;
}

/** A message of a batch that is being started. */
interface Reading extends Try, BatchMember {}

interface Started extends Reading {
  readonly message: Message;
}

/** What a batch has to do with the turns of its consumer. */
export interface BatchTurn {
  readonly binding: Binding;
  readonly shared: Circumstances;
  /** Whether there is time to start anything. */
  mayStart(): boolean;
  /** Whether a circuit breaker holds back all that would start. */
  holds(): boolean;
  /** Whether no other invocation may have it by now. */
  isOurs(one: Held): boolean;
  /** Writes down, ahead of it, that messages are started, in one flight. Answers for each how it leaves where it is not. */
  announce(members: readonly Member[]): Promise<readonly (Outcome | undefined)[]>;
  /** Waits until messages may be started, all at once, under a rate limit. Answers for each how it leaves where it may not. */
  inTime(members: readonly Member[]): Promise<readonly (Outcome | undefined)[]>;
  /** Counts what the handler came to for messages that were decided together. */
  ended(outcomes: readonly Outcome[]): void;
  leave(one: Held, outcome: Outcome): void;
}

/**
 * Starts messages together, in a batch, and sees to it that each leaves. Starts that are not known to be the first are
 * written down before, all in one flight. Never throws.
 */
export async function startTogether(batch: readonly Held[], turn: BatchTurn): Promise<void> {
  const members = batch.map((one): BatchMember => ({ ...memberOf(one), inPlace: 0 }));
  const again = members.filter(({ one }) => one.entry);
  if (again.length === 0) return attemptTogether(members, turn);
  const announced = new Set(passing(again, await turn.announce(again), turn));
  const known = members.filter((member) => !member.one.entry || announced.has(member));
  await attemptTogether(passing(known, await turn.inTime(known), turn), turn); // writing takes its time
}

/** Who goes on; the others leave as was answered for them. */
function passing(
  members: readonly BatchMember[],
  otherwise: readonly (Outcome | undefined)[],
  { leave }: BatchTurn,
): readonly BatchMember[] {
  return members.filter(({ one }, n) => {
    const outcome = otherwise[n];
    if (outcome) leave(one, outcome);
    return !outcome;
  });
}

/**
 * Starts the handler for messages together, and again for parts of them, one start after the other, until it is decided for
 * each how it leaves. One that fails leaves as if a handler of its own had failed; where the handler throws, halves are
 * started again, so that n messages have 2n - 1 starts at most, and nobody is charged before it has failed by itself.
 */
async function attemptTogether(members: readonly BatchMember[], turn: BatchTurn): Promise<void> {
  const { binding, shared } = turn;
  const ours = toStart(members, turn);
  const [only] = ours;
  if (ours.length === 1 && only) {
    const { one, before, inPlace } = only;
    const { message, announced } = one;
    delete one.message;
    const mayStart = () => turn.mayStart() && !turn.holds() && turn.isOurs(one);
    const { inTurn } = shared.rounds;
    const options = { inPlace, at: announced?.at, message, mayStart, inTurn };
    const came = await inTurn(() => (mayStart() ? attempt(binding, one.delivery, before, shared, options) : undefined));
    return came ? conclude([[only, came]], turn) : turn.leave(one, returned(before));
  }
  const readable = await readEach(ours, turn);
  let started: readonly Started[] = [];
  const outboxes = new Map<Message, Outbox>();
  let failures: Failures;
  try {
    failures = await shared.rounds.inTurn(() => {
      started = toStart(readable, turn);
      return handle(started, outboxes, turn);
    });
  } catch (error) {
    const [last, ...others] = started;
    return last && others.length === 0
      ? conclude([[last, failed(last, error)]], turn)
      : failedTogether(started, error, turn);
  }
  if (started.length === 0) return;
  const refused = await sendEach(started, outboxes, failures, turn);
  const came = started.map((each): Concluded => {
    const { sequence } = each.message;
    if (failures.has(sequence)) return [each, failed(each, failures.get(sequence))];
    const refusal = refused.get(each.message);
    return [each, refusal ? failed(each, refusal.error) : succeeded(each)];
  });
  await conclude(came, turn);
}

/** Those that may be started now; the others are handed back. */
function toStart<M extends BatchMember>(members: readonly M[], turn: BatchTurn): readonly M[] {
  const isToStart = turn.mayStart() && !turn.holds();
  return members.filter(({ one, before }) => {
    const starts = isToStart && turn.isOurs(one);
    if (!starts) turn.leave(one, returned(before));
    return starts;
  });
}

/** Reads each by itself. Who cannot be read has failed alone, and the others go on. */
async function readEach(members: readonly BatchMember[], turn: BatchTurn): Promise<Started[]> {
  const { binding, shared } = turn;
  const { clock } = shared;
  const { consumer } = binding;
  const at = clock.now();
  const all = members.map(({ one, before, inPlace }): Reading => {
    return { one, before, inPlace, binding, shared, delivery: one.delivery, at: one.announced?.at ?? at };
  });
  const unread: Concluded[] = [];
  const slow: Promise<void>[] = [];
  for (const each of all) {
    try {
      const attempt = each.before.started + 1;
      const known = each.one.message;
      delete each.one.message;
      const reading = known ? { ...known, attempt } : read(each.delivery, consumer, attempt);
      if (isPromise(reading)) slow.push(readSlowly(each, reading));
      else each.message = reading;
    } catch (error) {
      unread.push([each, failed(each, error)]);
    }
  }
  if (slow.length > 0) await Promise.all(slow);
  if (unread.length > 0) await conclude(unread, turn);
  const started = all.filter((each): each is Started => each.message !== undefined);
  if (slow.length > 0 && turn.holds()) {
    for (const { one, before } of started) turn.leave(one, returned(before));
    return [];
  }
  if (slow.length === 0 || turn.mayStart()) return started;
  const error = new SortieError("timed-out", "The time was over when all messages of its batch could be read");
  await conclude(
    started.map((each) => [each, leftApart(each, error, turn)]),
    turn,
  );
  return [];

  async function readSlowly(each: Reading, reading: Promise<Message>): Promise<void> {
    try {
      each.message = await clock.handling(`the schema of consumer "${consumer.name}"`, reading);
    } catch (error) {
      unread.push([each, failed(each, error)]);
    }
  }
}

/** One start of the handler. Throws what it throws, or what is wrong with its result. */
async function handle(
  started: readonly Started[],
  outboxes: Map<Message, Outbox>,
  { binding: { batch, consumer }, shared }: BatchTurn,
): Promise<Failures> {
  const { clock } = shared;
  const { signal, remaining } = clock;
  if (started.length === 0) return new Map();
  const messages = started.map(({ message }) => message);
  const deliveries = new Map(started.map(({ message, delivery }) => [message, delivery]));
  let ended = false;
  try {
    const handled = batch?.handler(messages, { signal, remaining, of });
    const what = `the handler of consumer "${consumer.name}"`;
    const result: unknown = isPromise(handled) ? await clock.handling(what, handled) : handled;
    return failuresIn(result, messages);
  } finally {
    ended = true;
    for (const outbox of outboxes.values()) outbox.close();
  }

  /** Each message has an outbox of its own: the ids in it do not depend on what the message is handled with. */
  function of(message: Message): Pick<HandlerContext, "publish" | "schedule" | "cancel"> {
    const delivery = deliveries.get(message);
    if (!delivery) throw notOfBatch(message);
    const outbox = outboxes.get(message) ?? new Outbox(shared, delivery, message);
    outboxes.set(message, outbox);
    if (ended) outbox.close();
    return outbox;
  }
}

/** Publishes what is wanted for messages that have not failed. What is refused fails the message that it was for. */
async function sendEach(
  started: readonly Started[],
  outboxes: ReadonlyMap<Message, Outbox>,
  failures: Failures,
  { shared: { clock } }: BatchTurn,
): Promise<Map<Message, { error: unknown }>> {
  const refused = new Map<Message, { error: unknown }>();
  if (outboxes.size === 0) return refused;
  const sending = started.map(async ({ message }) => {
    const outbox = outboxes.get(message);
    if (!outbox || outbox.size === 0 || failures.has(message.sequence)) return;
    await sendAll(outbox, clock).catch((error: unknown) => refused.set(message, { error }));
  });
  await Promise.all(sending);
  return refused;
}

/** What a start came to for one message. */
type Concluded = readonly [member: BatchMember, came: Outcome | Again];

/** Each leaves by itself; those that are to be started once more in place are, together. */
async function conclude(all: readonly Concluded[], turn: BatchTurn): Promise<void> {
  turn.ended(all.map(([, came]) => ("inPlaceMs" in came ? came.otherwise : came)));
  const again: [BatchMember, Again][] = [];
  for (const [member, came] of all) {
    if ("inPlaceMs" in came) again.push([member, came]);
    else turn.leave(member.one, came);
  }
  if (again.length === 0) return;
  await pause(
    Math.max(...again.map(([, { inPlaceMs }]) => inPlaceMs)),
    "waiting to start a handler once more in place",
  );
  if (!turn.mayStart() || turn.holds()) {
    for (const [{ one }, { otherwise }] of again) turn.leave(one, otherwise);
    return;
  }
  const members = again.map(([{ one, inPlace }, { otherwise }]): BatchMember => {
    return { one, before: otherwise.attempts, inPlace: inPlace + 1 };
  });
  await attemptTogether(passing(members, await turn.announce(members), turn), turn);
}

/** The handler threw, which may be one message's fault, or everyone's. */
async function failedTogether(started: readonly Started[], error: unknown, turn: BatchTurn): Promise<void> {
  const { clock, host } = turn.shared;
  const { retry } = turn.binding.consumer;
  const delayMs = decideTogether({ error, now: clock.now(), chance: Math.random() }, retry);
  if (delayMs !== undefined) {
    // it says when to come again, not whose fault it is: an attempt for each, but for the last one, which is to be its own
    const came = started.map((each): Concluded => {
      const charged = withStart(each.before, { at: each.at, host, error: textOf(error) });
      const attempts = charged.started < retry.attempts ? charged : apart(each.before);
      return [each, { settlement: { kind: "retry", delayMs }, error, attempts }];
    });
    return conclude(came, turn);
  }
  const middle = Math.ceil(started.length / 2);
  for (const half of [started.slice(0, middle), started.slice(middle)]) {
    await pause(0, "waiting to start a part of a batch"); // what was decided leaves meanwhile, and handlers may be busy
    if (turn.holds() || turn.mayStart())
      await attemptTogether(half, turn); // who is held back is not started
    else {
      const came = half.map((each): Concluded => [each, leftApart(each, error, turn)]);
      await conclude(came, turn);
    }
  }
}

/** Nobody can tell any more whether a message would have failed by itself: it is charged nothing, and has no company next. */
function leftApart({ before }: BatchMember, error: unknown, { binding }: BatchTurn): Outcome {
  const delayMs = backoffMs(binding.consumer.retry.backoff, before.started + 1, Math.random());
  return { settlement: { kind: "retry", delayMs }, error, attempts: apart(before) };
}

function apart({ open: _, ...before }: Attempts): Attempts {
  return { ...before, apart: true };
}
