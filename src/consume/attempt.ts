import type { Start } from "../dead-letter/story.ts";
import type { Message } from "../define/message.ts";
import { textOf } from "../errors.ts";
import type { Delivery } from "../nats/delivery.ts";
import { within } from "../nats/within.ts";
import { isPromise } from "../schema.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Clock } from "./clock.ts";
import type { Binding } from "./handler.ts";
import { type Attempts, noAttempts } from "./ledger.ts";
import { read, unreadable } from "./message.ts";
import { Outbox } from "./outbox.ts";
import type { Rounds } from "./rounds.ts";
import { decideFailure, type Settlement } from "./settlement.ts";

/** How a delivery is to leave, and why. */
export interface Outcome {
  readonly settlement: Settlement;
  readonly error?: unknown;
  /** All that is known of the message's attempts now. */
  readonly attempts: Attempts;
}

/** The handler is to be started once more within this invocation. */
export interface Again {
  readonly inPlaceMs: number;
  /** How it leaves where that cannot be. */
  readonly otherwise: Outcome;
}

/** Which start this is, beside what is known of those before. */
export interface StartOptions {
  /** How many starts were just before, in place. @default 0 */
  readonly inPlace?: number;
  /** When it was, or was written down ahead, in epoch milliseconds. @default now */
  readonly at?: number | undefined;
  /** What was read of it ahead. @default it is read */
  readonly message?: Message | undefined;
  /** Whether it may still be started, when reading it has taken a while. @default it may */
  readonly mayStart?: () => boolean;
  /** Starts it then when it is its turn. @default at once */
  readonly inTurn?: Rounds["inTurn"];
}

/** One start of a handler. */
export interface Try {
  readonly binding: Binding;
  readonly delivery: Delivery;
  readonly shared: Circumstances;
  /** What is known of the starts before. */
  readonly before: Attempts;
  /** How many of them were just before, in place. */
  readonly inPlace: number;
  readonly at: number;
  /** What was read, once it could be. */
  message?: Message;
}

/**
 * Reads a delivery, runs its handler, and decides how the delivery leaves. `before` is what is known of earlier attempts.
 * Never throws; answers at once where schema and handler do.
 */
export function attempt(
  binding: Binding,
  delivery: Delivery,
  before: Attempts,
  shared: Circumstances,
  {
    inPlace = 0,
    at = shared.clock.now(),
    message: known,
    mayStart = () => true,
    inTurn = (start) => start(),
  }: StartOptions = {},
): Outcome | Again | Promise<Outcome | Again> {
  const { clock } = shared;
  const { consumer } = binding;
  const one: Try = { binding, delivery, shared, before, inPlace, at };
  try {
    const reading = known ? { ...known, attempt: before.started + 1 } : read(delivery, consumer, before.started + 1);
    if (isPromise(reading)) {
      const what = `the schema of consumer "${consumer.name}"`;
      return clock
        .handling(what, reading)
        .then((message) => inTurn(() => (mayStart() ? ended(one, handle(one, message)) : returned(before))))
        .catch((error: unknown) => failed(one, error));
    }
    return ended(one, handle(one, reading));
  } catch (error) {
    return failed(one, error);
  }
}

function ended(one: Try, handling: Promise<void> | undefined): Outcome | Promise<Outcome | Again> {
  if (handling === undefined) return succeeded(one);
  return handling.then(
    () => succeeded(one),
    (error: unknown) => failed(one, error),
  );
}

/** What comes of a message for which `error` was thrown by what belongs to its handler, before that was started. */
export function failedBefore(
  binding: Binding,
  delivery: Delivery,
  before: Attempts,
  shared: Circumstances,
  error: unknown,
): Outcome {
  const decided = failed({ binding, delivery, shared, before, inPlace: Infinity, at: shared.clock.now() }, error);
  return "inPlaceMs" in decided ? decided.otherwise : decided;
}

function handle(one: Try, message: Message): Promise<void> | undefined {
  one.message = message;
  const { binding, delivery, shared } = one;
  const { signal, remaining } = shared.clock;
  const outbox = new Outbox(shared, delivery, message);
  const { publish, schedule, cancel } = outbox;
  try {
    const handled = binding.handler(message, { publish, schedule, cancel, signal, remaining });
    if (isPromise(handled) || outbox.size > 0) return finish(one, handled, outbox);
  } catch (error) {
    outbox.close();
    throw error;
  }
  outbox.close();
  return undefined;
}

async function finish({ binding, shared: { clock } }: Try, handled: unknown, outbox: Outbox): Promise<void> {
  try {
    if (isPromise(handled)) await clock.handling(`the handler of consumer "${binding.consumer.name}"`, handled);
  } finally {
    outbox.close();
  }
  if (outbox.size > 0) await sendAll(outbox, clock);
}

/** Publishes what a handler that has succeeded wants published. Throws what was refused. */
export async function sendAll(outbox: Outbox, clock: Clock): Promise<void> {
  const ms = clock.budget.publishBy - clock.now();
  await within(ms, "publishing what the handler wants published", outbox.flush(ms));
}

export function succeeded({ before }: Pick<Try, "before">): Outcome {
  return before === noAttempts.attempts ? firstSucceeded : { settlement: acknowledged, attempts: before };
}

/** Decides what becomes of a message whose start failed. */
export function failed(one: Try, error: unknown): Outcome | Again {
  const { binding, delivery: _, shared, before, inPlace, at } = one;
  const { clock, host } = shared;
  const reason = one.message === undefined ? unreadable(error) : undefined;
  if (reason) return { settlement: { kind: "dead-letter", reason }, error, attempts: before };
  const now = clock.now();
  const attempts = withStart(before, { at, host, error: textOf(error) });
  const leftMs = clock.budget.stopAt - now;
  const failure = { error, attempt: attempts.started, inPlace, leftMs, now, chance: Math.random() };
  const decided = decideFailure(failure, binding.consumer.retry);
  if (decided.kind !== "in-place") return { settlement: decided, error, attempts };
  const otherwise = decideFailure({ ...failure, inPlace: Infinity }, binding.consumer.retry) as Settlement;
  return { inPlaceMs: decided.delayMs, otherwise: { settlement: otherwise, error, attempts } };
}

const acknowledged: Settlement = { kind: "ack" };
const firstSucceeded: Outcome = { settlement: acknowledged, attempts: noAttempts.attempts };

/** Whether a message simply succeeded. */
export function isAcknowledged({ settlement }: Outcome): boolean {
  return settlement === acknowledged;
}

/** Handed back, which is no attempt. */
export function returned(attempts: Attempts, delayMs = 0): Outcome {
  return { settlement: { kind: "return", delayMs }, attempts };
}

/** The attempts with one more start, which has ended. */
export function withStart({ open: _, apart: _was, ...before }: Attempts, start: Start): Attempts {
  return { ...before, started: before.started + 1, starts: [...before.starts, start] };
}
