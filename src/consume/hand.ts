import { textOf } from "../errors.ts";
import { onClosed } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { point } from "../nats/within.ts";
import { isAcknowledged, type Outcome, returned } from "./attempt.ts";
import { longestWaitMs } from "./budget.ts";
import type { Circumstances } from "./circumstances.ts";
import { openClaims } from "./claims.ts";
import { ACK, confirmEach, confirmTogether } from "./confirm.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { keepLeases, keptParts } from "./lease.ts";
import { noAttempts } from "./ledger.ts";
import { recall } from "./recall.ts";
import { settle } from "./settle.ts";
import type { Source } from "./source.ts";
import type { Beginning } from "./start.ts";
import type { Tally } from "./tally.ts";
import { type Limits, openTurns, troubleMs } from "./turns.ts";

/** What an invocation has in hand for one consumer: from being delivered until being settled. */
export interface Hand {
  take(source: Source["kind"], delivery: Delivery): void;
  /** Deliveries that have come. */
  readonly taken: number;
  /** Those that are not settled. */
  readonly size: number;
  /** Those of these that are handled or wait for a handler. */
  readonly messages: number;
  /** As many of both as came from one source. */
  of(source: Source["kind"]): { readonly size: number; readonly messages: number };
  /** Handlers that run. */
  readonly running: number;
  /** Messages that wait for their slot under a rate limit by key, beside those that are handled or wait for a handler. */
  readonly aside: number;
  /** How many may. */
  readonly places: number;
  /** Their bytes, and those of deliveries that are being settled. */
  readonly bytes: number;
  /** What a handler takes, in milliseconds; undefined as long as none has ended. */
  readonly handlerMs: number | undefined;
  /** How many messages a handler has been taking at once. */
  readonly perHandler: number;
  /** Lets acknowledgements gather while more may come of a pull. */
  during<T>(pull: Promise<T>): Promise<T>;
  /** Whether nothing is handled, waits for a handler, or is on its way. */
  readonly atRest: boolean;
  /** Calls back whenever something has left the hand or a pull has ended; what it returns ends that. */
  onChange(listener: () => void): () => void;
  /** Resolves when a condition is true, as of such a change. */
  until(condition: () => boolean): Promise<void>;
  /** Nothing more will come. */
  noMore(): void;
  /** Starts nothing any more, and hands back what was not started. */
  stop(): void;
  /** Resolves when all that is in hand has been settled. */
  emptied(): Promise<void>;
}

export function openHand(binding: Binding, shared: Circumstances, tally: Tally, limits: Limits): Hand {
  const { consumer } = binding;
  const { connection, clock, gate } = shared;
  const { now } = clock;
  const held = new Map<Held["key"], Held>();
  const listeners = new Set<() => void>();
  const acknowledged = new Map<Promise<void>, Held[]>(); // by what confirms them
  let taken = 0;
  let pulling = 0;
  const counts = {
    own: { size: 0, messages: 0 },
    parked: { size: 0, messages: 0 },
    exhausted: { size: 0, messages: 0 },
  };
  let messages = 0;
  let bytes = 0;
  let stopped = false;
  let telling = false;

  const openConfirmation = () =>
    consumer.confirm === "each"
      ? confirmEach(connection, clock)
      : confirmTogether(connection, clock, () => turns.running > 0 || pulling > 0);
  // what one consumer answers says nothing of what another one was sent
  const confirmations = { own: openConfirmation(), parked: openConfirmation(), exhausted: openConfirmation() };
  const leases = keepLeases(held, consumer.ackWaitMs, shared, tally);
  const turns = openTurns(
    binding,
    limits,
    { check: leases.check, leave, trouble: tally.trouble, hungry: tell },
    shared,
  );
  shared.rounds.join({ keepMs: consumer.ackWaitMs / keptParts, keep: leases.keep, onRound: turns.startNext });
  const claims = openClaims(binding, shared);
  clock.leaving.addEventListener("abort", stop);
  if (clock.leaving.aborted) stop();
  const listens = onClosed(connection, stop); // nothing could be settled any more

  const hand: Hand = {
    get taken() {
      return taken;
    },
    take(source, delivery) {
      taken += 1;
      const key = source === "own" ? delivery.sequence : `${source}.${delivery.sequence}`;
      const before = held.get(key);
      if (before?.settling) before.next = delivery;
      else if (before) leases.renew(before, delivery.ackSubject);
      else begin(key, source, delivery);
    },
    get size() {
      return held.size;
    },
    get messages() {
      return messages;
    },
    of: (source) => counts[source],
    get running() {
      return turns.running;
    },
    get aside() {
      return turns.aside;
    },
    get places() {
      return turns.places;
    },
    get bytes() {
      return bytes;
    },
    get handlerMs() {
      return turns.handlerMs;
    },
    get perHandler() {
      return turns.perHandler;
    },
    get atRest() {
      return messages === 0 && pulling === 0;
    },
    async during(pull) {
      pulling += 1;
      try {
        return await pull;
      } finally {
        pulling -= 1;
        turns.heard();
        for (const confirmation of Object.values(confirmations)) confirmation.hurry();
        tell();
      }
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    until(condition) {
      return new Promise((resolve) => {
        const listens = hand.onChange(look);
        look();
        function look() {
          if (!condition()) return;
          listens();
          resolve();
        }
      });
    },
    noMore: turns.noMore,
    stop,
    async emptied() {
      await point(
        "waiting for all to be settled",
        hand.until(() => held.size === 0),
      );
      leases.end();
      listens();
    },
  };
  return hand;

  function begin(key: Held["key"], source: Source["kind"], delivery: Delivery): void {
    const { ackSubject, bytes: size } = delivery;
    const state = { lost: false, counted: false, inside: 0, settling: false };
    const one: Held = { key, bytes: size, source, delivery, ackSubject, heardAt: now(), ...state };
    held.set(key, one);
    messages += 1;
    counts[source].size += 1;
    counts[source].messages += 1;
    bytes += size;
    if (source === "own") tally.pulled(one);
    turns.heard();
    if (stopped) leave(one, returned(noAttempts.attempts, unlessOver()));
    else if (isPlain(one) && !claims) turns.beside(one);
    else void goOn(one);
  }

  /** Where an invocation leaves early, a pull may still wait: at once it would get the same message time and again. */
  function unlessOver(): number {
    return clock.signal.aborted ? 0 : longestWaitMs;
  }

  function stop(): void {
    stopped = true;
    turns.stop();
    tell();
  }

  /** What a delivery stands for may have more bytes than itself. */
  function account(one: Held): void {
    bytes += one.delivery.bytes - one.bytes;
    one.bytes = one.delivery.bytes;
  }

  /** Once for all that came in one piece, and before what is acknowledged of it leaves: in one frame with that. */
  function tell(): void {
    if (telling) return;
    telling = true;
    queueMicrotask(() => {
      telling = false;
      for (const listener of listeners) listener();
    });
  }

  /** What is known of a message that was delivered before, and of its key, decides how it goes on. */
  async function goOn(one: Held): Promise<void> {
    try {
      const beginning = isPlain(one) ? plainStart : await recall(binding, one, shared);
      account(one);
      if (beginning.kind === "not-due") return leave(one, returned(noAttempts.attempts, beginning.inMs));
      if (!one.counted) tally.pulled(one);
      if (beginning.kind === "leave") return leave(one, beginning.outcome);
      const { attempts, alone } = beginning;
      const otherwise = await claims?.claim(one, attempts);
      if (otherwise) return leave(one, otherwise);
      if (stopped) return leave(one, returned(attempts));
      if (!alone) return turns.beside(one);
      await turns.alone(one, attempts);
    } catch (error) {
      tally.trouble(textOf(error));
      leave(one, returned(noAttempts.attempts, troubleMs));
    }
  }

  /** Settles a delivery, whatever comes of it, and lets go of it. */
  function leave(one: Held, outcome: Outcome): void {
    one.settling = true;
    if (one.inside && !one.inCompany) gate.handled();
    messages -= 1;
    counts[one.source].messages -= 1;
    turns.startNext();
    tell();
    leases.check(one);
    if (isAcknowledged(outcome) && one.source === "own" && !one.entry && !one.claim) {
      acknowledge(one, outcome);
      return;
    }
    const noted = one.claim && claims?.end(one, outcome.settlement);
    settle(binding, one, outcome, shared, confirmations[one.source]).then(
      async (settled) => {
        const trouble = await noted;
        if (trouble) tally.trouble(trouble);
        tally.count(one, settled);
        gone(one, isFinal(settled));
      },
      (error) => unsettled(one, outcome, error),
    );
  }

  /** What most deliveries come to: nothing to do but to acknowledge them, together with others. */
  function acknowledge(one: Held, outcome: Outcome): void {
    const confirmed = confirmations.own.settle(one.ackSubject, ACK, clock.budget.settleBy);
    const others = acknowledged.get(confirmed);
    if (others) {
      others.push(one);
      return;
    }
    const all = [one];
    acknowledged.set(confirmed, all);
    void confirmed
      .then(
        () => {
          tally.acknowledged(all.length);
          for (const one of all) gone(one, true);
        },
        (error) => {
          for (const one of all) unsettled(one, outcome, error);
        },
      )
      .finally(() => acknowledged.delete(confirmed));
  }

  function unsettled(one: Held, outcome: Outcome, error: unknown): void {
    tally.unconfirmed(one, outcome, error);
    gone(one, false);
  }

  function gone(one: Held, forGood: boolean): void {
    counts[one.source].size -= 1;
    bytes -= one.bytes;
    held.delete(one.key);
    if (one.inside) gate.leave(one.inside);
    if (one.next && !forGood) hand.take(one.source, one.next);
    tell();
  }
}

const plainStart: Beginning = { kind: "start", alone: false, attempts: noAttempts.attempts };

/** Delivered for the first time: nothing can be known of it. */
function isPlain({ source, delivery }: Held): boolean {
  return source === "own" && !delivery.again;
}

function isFinal({ settlement }: Outcome): boolean {
  return settlement.kind === "ack" || settlement.kind === "dead-letter";
}
