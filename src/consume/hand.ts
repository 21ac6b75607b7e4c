import { textOf } from "../errors.ts";
import type { Delivery } from "../nats/delivery.ts";
import { attempt, type Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import { confirmEach, confirmTogether } from "./confirm.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { type Attempts, noAttempts } from "./ledger.ts";
import { settle } from "./settle.ts";
import { resolveExhausted, resolveParked, type Source } from "./source.ts";
import { decideStart } from "./start.ts";
import type { Tally } from "./tally.ts";

/** What an invocation has in hand for one consumer: from being delivered until being settled. */
export interface Hand {
  take(source: Source["kind"], delivery: Delivery): void;
  /** Deliveries that are handled or wait for a handler. */
  readonly messages: number;
  /** Their bytes, and those of deliveries that are being settled. */
  readonly bytes: number;
  /** What a handler takes, in milliseconds; undefined as long as none has ended. */
  readonly handlerMs: number | undefined;
  /** Resolves when something has left the hand. */
  changed(): Promise<void>;
  /** Resolves when all that is in hand has been settled. */
  emptied(): Promise<void>;
}

export function openHand(binding: Binding, shared: Circumstances, tally: Tally): Hand {
  const { consumer } = binding;
  const { connection, clock, gate, ledger } = shared;
  const { now } = clock;
  const held = new Map<string, Held>();
  const queue: Held[] = [];
  let running = 0; // handlers
  let settling = 0;
  let bytes = 0;
  let handlerMs: number | undefined;
  let stopped = false;
  let waiting: (() => void)[] = [];

  const confirm =
    consumer.confirm === "each" ? confirmEach(connection, now) : confirmTogether(connection, now, () => running > 0);
  const heartbeat = setInterval(beat, consumer.ackWaitMs / 2);
  gate.onOpen(next);
  clock.signal.addEventListener("abort", stop);
  if (clock.signal.aborted) stop();
  void connection.closed().then(stop); // nothing could be settled any more

  return {
    take(source, delivery) {
      const key = `${source}.${delivery.sequence}`;
      const before = held.get(key);
      if (before) {
        // it came back to us: a late word to the old delivery would mean nothing
        lose(before);
        Object.assign(before, { ackSubject: delivery.ackSubject, heardAt: now(), lost: false });
        return;
      }
      const size = delivery.data.length;
      const one: Held = {
        key,
        bytes: size,
        source,
        delivery,
        ackSubject: delivery.ackSubject,
        heardAt: now(),
        lost: false,
      };
      held.set(key, one);
      bytes += size;
      if (stopped) void leave(one, returned(noAttempts.attempts));
      else if (source === "own" && !delivery.again) enqueue(one);
      else void lookUp(one);
    },
    get messages() {
      return held.size - settling;
    },
    get bytes() {
      return bytes;
    },
    get handlerMs() {
      return handlerMs;
    },
    changed: () => new Promise((resolve) => waiting.push(resolve)),
    async emptied() {
      while (held.size > 0) await this.changed();
      clearInterval(heartbeat);
    },
  };

  /** Starts nothing any more, and hands back what was not started. */
  function stop(): void {
    stopped = true;
    for (const one of queue.splice(0)) void leave(one, returned(one.entry?.attempts ?? noAttempts.attempts));
    tell();
  }

  function tell(): void {
    const told = waiting;
    waiting = [];
    for (const resolve of told) resolve();
  }

  function enqueue(one: Held): void {
    queue.push(one);
    next();
  }

  function next(): void {
    while (queue.length > 0 && running < consumer.concurrency && gate.open) {
      const one = queue.shift() as Held;
      gate.enter();
      void run(one, false).then((outcome) => leave(one, outcome).then(gate.leave));
    }
  }

  /** A message that may have been started before: what the ledger says decides how it goes on. */
  async function lookUp(one: Held): Promise<void> {
    const patienceMs = Math.min(5_000, clock.budget.publishBy - now());
    try {
      if (one.source === "parked") {
        const { delivery, notBefore = 0 } = resolveParked(consumer, one.delivery);
        one.delivery = delivery;
        if (notBefore > now()) return void leave(one, returned(noAttempts.attempts, notBefore - now()));
      } else if (one.source === "exhausted") {
        const resolved = await resolveExhausted(connection, consumer, one.delivery, patienceMs);
        if (!resolved) return void leave(one, { settlement: { kind: "ack" }, attempts: noAttempts.attempts });
        one.delivery = resolved.delivery;
      }
      one.entry = await ledger.read(one.delivery, patienceMs);
    } catch (error) {
      tally.trouble(textOf(error));
      return void leave(one, returned(noAttempts.attempts, troubleMs));
    }
    const { attempts } = one.entry;
    const beginning = decideStart(attempts, consumer.retry.attempts, one.source === "parked");
    if (beginning.kind === "done") return void leave(one, { settlement: { kind: "ack" }, attempts });
    if (beginning.kind === "parked") {
      const settlement = { kind: "retry", delayMs: Math.max(0, beginning.until - now()) } as const;
      return void leave(one, { settlement, attempts, error: "its retry is parked" });
    }
    if (beginning.kind === "dead-letter") {
      const error = attempts.starts.findLast((start) => start.error)?.error;
      const died = `its function died each of the last ${attempts.started} times that it was started`;
      const told = beginning.reason === "function-died" ? new Error(died) : error;
      return void leave(one, { settlement: beginning, attempts, error: told });
    }
    if (stopped) return void leave(one, returned(attempts));
    if (!beginning.alone) return enqueue(one);
    await gate.alone(async () => {
      await leave(one, stopped ? returned(attempts) : await run(one, true));
    });
  }

  /** Starts the handler. One that is not known to be the first is written down before, so that it counts whatever happens. */
  async function run(one: Held, alone: boolean): Promise<Outcome> {
    if (lapsed(one)) lose(one);
    if (one.lost) return returned(one.entry?.attempts ?? noAttempts.attempts);
    running += 1;
    try {
      const before = one.entry?.attempts ?? noAttempts.attempts;
      const { open: _, ...closed } = before;
      const started = now();
      if (one.entry) {
        const starts = [...before.starts, { at: started, host: shared.host }];
        const opened = {
          ...closed,
          started: before.started + 1,
          starts,
          open: alone ? "alone" : "in-company",
        } as const;
        try {
          one.entry = await ledger.write(one.delivery, one.entry, opened, clock.budget.abandonAt - started);
        } catch (error) {
          tally.trouble(textOf(error));
          return returned(before, troubleMs);
        }
      }
      const outcome = await attempt(binding, one.delivery, closed, shared);
      const took = now() - started;
      handlerMs = handlerMs === undefined ? took : handlerMs * 0.9 + took * 0.1;
      return outcome;
    } finally {
      running -= 1;
    }
  }

  /** Settles a delivery, whatever comes of it, and lets go of it. */
  async function leave(one: Held, outcome: Outcome): Promise<void> {
    settling += 1;
    if (!stopped) next();
    tell();
    if (lapsed(one)) lose(one);
    const asked = now();
    try {
      const settled = await settle(binding, one, outcome, shared, confirm);
      if (outcome.settlement.kind === "ack") clock.learn(now() - asked);
      tally.count(one, settled);
    } catch (error) {
      tally.unconfirmed(one, outcome, error);
    }
    settling -= 1;
    bytes -= one.bytes;
    held.delete(one.key);
    tell();
  }

  function beat(): void {
    for (const one of held.values()) {
      if (lapsed(one)) lose(one);
      if (one.lost) continue;
      try {
        connection.publish(one.ackSubject, "+WPI");
        one.heardAt = now();
      } catch {
        return; // the connection is closed, which the settlements will tell
      }
    }
  }

  /** Whether this function was frozen, or busy with itself, for longer than the server waits for a word. */
  function lapsed(one: Held): boolean {
    return !one.lost && now() - one.heardAt > consumer.ackWaitMs;
  }

  function lose(one: Held): void {
    one.lost = true;
    tally.leaseLost(one);
  }
}

const troubleMs = 1_000;

function returned(attempts: Attempts, delayMs = 0): Outcome {
  return { settlement: { kind: "return", delayMs }, attempts };
}
