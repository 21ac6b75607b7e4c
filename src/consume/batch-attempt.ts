import type { Message } from "../define/message.ts";
import { backoffMs } from "../define/retry.ts";
import { SortieError, textOf } from "../errors.ts";
import {
  attempt,
  decide,
  isPromise,
  type Outcome,
  sendAll,
  succeeded,
  type Try,
  untilAgain,
  withStart,
} from "./attempt.ts";
import { type Failures, failuresIn, notOfBatch } from "./batch.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding, HandlerContext } from "./handler.ts";
import type { Held } from "./held.ts";
import { type Attempts, noAttempts } from "./ledger.ts";
import { read } from "./message.ts";
import { Outbox } from "./outbox.ts";
import { decideTogether } from "./settlement.ts";

/** A message of a batch, with what is known of its starts before. */
interface Member {
  readonly one: Held;
  readonly before: Attempts;
  /** How many of them were just before, in place. */
  readonly inPlace: number;
}

/** A message of a batch that is being started. */
interface Reading extends Try, Member {}

interface Started extends Reading {
  readonly message: Message;
}

/** What a batch has to do with the turns of its consumer. */
export interface BatchTurn {
  readonly binding: Binding;
  readonly shared: Circumstances;
  /** Whether anything may still be started once more. */
  mayStart(): boolean;
  /** Whether a message is still ours to start; else it leaves. */
  isOurs(one: Held, before: Attempts): boolean;
  /** Writes down, ahead of it, that a message is started. */
  writeDown(one: Held, before: Attempts): Promise<void>;
  /** Hands back what could not be written down. */
  refused(one: Held, before: Attempts, error: unknown): void;
  /** How messages leave, as soon as it is decided: those of one call together. */
  leave(decided: readonly (readonly [Held, Outcome])[]): void;
}

/**
 * Starts messages together, in a batch, and sees to it that each leaves. Starts that are not known to be the first are
 * written down before, all in one flight. Never throws.
 */
export async function startTogether(batch: readonly Held[], turn: BatchTurn): Promise<void> {
  const members: Member[] = batch.map((one) => ({
    one,
    before: one.entry?.attempts ?? noAttempts.attempts,
    inPlace: 0,
  }));
  const again = members.filter(({ one }) => one.entry);
  const refused = new Set<Member>();
  const writing = again.map(async (member) => {
    const { one, before } = member;
    try {
      await turn.writeDown(one, before);
    } catch (error) {
      refused.add(member);
      turn.refused(one, before, error);
    }
  });
  if (writing.length > 0) await Promise.all(writing);
  await attemptTogether(refused.size === 0 ? members : members.filter((member) => !refused.has(member)), turn);
}

/**
 * Starts the handler for messages together, and again for parts of them, one start after the other, until it is decided for
 * each how it leaves. One that fails leaves as if a handler of its own had failed; where the handler throws, halves are
 * started again, so that n messages have 2n - 1 starts at most, and nobody is charged before it has failed by itself.
 */
async function attemptTogether(members: readonly Member[], turn: BatchTurn): Promise<void> {
  const { binding, shared } = turn;
  const ours = members.filter(({ one, before }) => turn.isOurs(one, before));
  const [only] = ours;
  if (ours.length === 1 && only) {
    const { one, before, inPlace } = only;
    turn.leave([[one, await attempt(binding, one.delivery, before, shared, inPlace)]]);
    return;
  }
  const started = await readEach(ours, turn);
  if (started.length === 0) return;
  const outboxes = new Map<Message, Outbox>();
  let failures: Failures;
  try {
    failures = await handle(started, outboxes, turn);
  } catch (error) {
    if (started.length > 1) await failedTogether(started, error, turn);
    else await leaveEach(started, () => ({ error }), turn);
    return;
  }
  const refused = await sendEach(started, outboxes, failures, turn);
  await leaveEach(
    started,
    ({ message }) =>
      failures.has(message.sequence) ? { error: failures.get(message.sequence) } : refused.get(message),
    turn,
  );
}

/** Reads each by itself. Who cannot be read has failed alone, and the others go on. */
async function readEach(members: readonly Member[], turn: BatchTurn): Promise<Started[]> {
  const { binding, shared } = turn;
  const { clock } = shared;
  const { consumer } = binding;
  const at = clock.now();
  const all = members.map(({ one, before, inPlace }): Reading => {
    return { one, before, inPlace, binding, shared, delivery: one.delivery, at };
  });
  const failed = new Map<Reading, unknown>();
  const slow: Promise<void>[] = [];
  for (const each of all) {
    try {
      const reading = read(each.delivery, consumer, each.before.started + 1);
      if (isPromise(reading)) slow.push(readSlowly(each, reading));
      else each.message = reading;
    } catch (error) {
      failed.set(each, error);
    }
  }
  if (slow.length > 0) await Promise.all(slow);
  if (failed.size > 0) await leaveEach([...failed.keys()], (each) => ({ error: failed.get(each) }), turn);
  const started = all.filter((each): each is Started => each.message !== undefined);
  if (slow.length === 0 || turn.mayStart()) return started;
  const error = new SortieError("timed-out", "The time was over when all messages of its batch could be read");
  turn.leave(started.map((each) => [each.one, leftApart(each, error, turn)]));
  return [];

  async function readSlowly(each: Reading, reading: Promise<Message>): Promise<void> {
    try {
      each.message = await clock.handling(`the schema of consumer "${consumer.name}"`, reading);
    } catch (error) {
      failed.set(each, error);
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
  function of(message: Message): Pick<HandlerContext, "publish" | "schedule"> {
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

/** Each leaves by itself, with what it failed with or without; who is to be started once more in place is, with the others. */
async function leaveEach<Each extends Reading>(
  all: readonly Each[],
  failureOf: (each: Each) => { readonly error: unknown } | undefined,
  turn: BatchTurn,
): Promise<void> {
  const leaving: [Held, Outcome][] = [];
  const again: Member[] = [];
  let waitMs = 0;
  for (const each of all) {
    const { one, inPlace } = each;
    const failure = failureOf(each);
    const decided = failure ? decide(each, failure.error) : succeeded(each);
    if ("again" in decided) {
      again.push({ one, before: decided.attempts, inPlace: inPlace + 1 });
      waitMs = Math.max(waitMs, decided.again.delayMs);
    } else leaving.push([one, decided]);
  }
  if (leaving.length > 0) turn.leave(leaving);
  if (again.length === 0) return;
  await untilAgain(waitMs);
  await attemptTogether(again, turn);
}

/** The handler threw, which may be one message's fault, or everyone's. */
async function failedTogether(started: readonly Started[], error: unknown, turn: BatchTurn): Promise<void> {
  const { clock, host } = turn.shared;
  const { retry } = turn.binding.consumer;
  const delayMs = decideTogether({ error, now: clock.now(), chance: Math.random() }, retry);
  if (delayMs !== undefined) {
    // it says when to come again, not whose fault it is: an attempt for each, but for the last one, which is to be its own
    const decided = started.map(({ one, before, at }): [Held, Outcome] => {
      const charged = withStart(before, { at, host, error: textOf(error) });
      const attempts: Attempts = charged.started < retry.attempts ? charged : { ...before, apart: true };
      return [one, { settlement: { kind: "retry", delayMs }, error, attempts }];
    });
    turn.leave(decided);
    return;
  }
  const middle = Math.ceil(started.length / 2);
  for (const half of [started.slice(0, middle), started.slice(middle)]) {
    if (turn.mayStart()) await attemptTogether(half, turn);
    else turn.leave(half.map((each) => [each.one, leftApart(each, error, turn)]));
  }
}

/** Nobody can tell any more whether a message would have failed by itself: it is charged nothing, and has no company next. */
function leftApart({ before }: Member, error: unknown, { binding }: BatchTurn): Outcome {
  const delayMs = backoffMs(binding.consumer.retry.backoff, before.started + 1, Math.random());
  return { settlement: { kind: "retry", delayMs }, error, attempts: { ...before, apart: true } };
}
