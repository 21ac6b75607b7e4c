import type { BreakerPolicy, ConsumerDefinition } from "../define/consumer.ts";
import { breakerSubject, breakersStream } from "../define/own.ts";
import { textOf } from "../errors.ts";
import { pauseConsumer, resumeConsumer } from "../nats/pause-consumer.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import type { Outcome } from "./attempt.ts";
import { type BreakerState, closed, decideAfter, decideEntry, type Entry, opened, pauseOf } from "./breaker-state.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import { isUnreadable } from "./message.ts";
import { NonRetriableError } from "./settlement.ts";

/** A consumer's circuit breaker, as one invocation takes part in it. */
export interface Breaker {
  /** What this invocation may do. Throws what `Records` throws. */
  enter(): Promise<Entry>;
  readonly state: BreakerState["state"];
  /** Counts a handler that has ended. */
  ended(outcome: Outcome): void;
  /** Nothing is in hand any more: what was counted leaves in the flight of the last settlements. */
  rest(): void;
  /** Whether no handler may be started now: it is open, or, by what is known here, opens, which is being agreed on. */
  readonly holds: boolean;
  /** Whether this invocation is to try a message, and no handler has ended that tells how it goes. */
  readonly probing: boolean;
  /** Writes down what has been counted. */
  flush(): Promise<void>;
  /** Calls back when it opens, wherever that was noticed. */
  onOpen(listener: () => void): void;
  /** Calls back when it holds no longer. */
  onRelease(listener: () => void): void;
  /** Resolves when what a probe came to has been agreed on; whether the breaker is closed now. */
  probed(): Promise<boolean>;
  end(): void;
}

interface Counts {
  readonly ended: number;
  readonly failed: number;
}

const none: Counts = { ended: 0, failed: 0 };

function sum(one: Counts, other: Counts): Counts {
  return { ended: one.ended + other.ended, failed: one.failed + other.failed };
}

/** How often counts are written down while nothing fails. */
const everyMs = 1_000;
const restMs = 100;
const tries = 8;

/** Of a consumer with `breaker`; undefined for the others. `trouble` is told what could not be written down. */
export function openBreaker(
  { consumer }: Binding,
  shared: Circumstances,
  trouble: (error: string) => void,
): Breaker | undefined {
  return consumer.breaker && takePart(consumer, consumer.breaker, shared, trouble);
}

function takePart(
  consumer: ConsumerDefinition,
  policy: BreakerPolicy,
  { connection, clock }: Circumstances,
  trouble: (error: string) => void,
): Breaker {
  const { now } = clock;
  const { counts = countsByDefault } = policy;
  const by = crypto.randomUUID();
  const subject = breakerSubject(consumer);
  const records = recordsIn<BreakerState>(connection, breakersStream, "the state of a circuit breaker");
  const leftMs = () => Math.max(1, clock.budget.settleBy - now());
  const openListeners: (() => void)[] = [];
  const releaseListeners: (() => void)[] = [];
  let known: { value: BreakerState; revision: number } = { value: closed, revision: 0 };
  let counted = none; // and not written down
  let underWay = none; // being written down
  let probing = false;
  let tried = false; // a handler has ended of what it tried
  let writing = Promise.resolve();
  const began = now();
  let writtenAt: number | undefined;
  let isOpen = false;
  let holds = false;

  // each write of the record is a message that whoever listens gets at once, and without asking
  const news = connection.subscribe(subject, {
    callback: (error, message) => {
      if (error) trouble(textOf(error)); // what others see is only noticed when something is written down
      if (error || message.data.length === 0) return;
      const told = message.json<BreakerState>();
      if (told.state === "open" && told.by !== by && told.until > now()) open(); // else it is to be tried again
    },
  });

  function open(): void {
    if (isOpen) return;
    isOpen = true;
    for (const listener of openListeners) listener();
  }

  async function look(): Promise<void> {
    const found = await records.read(subject, leftMs());
    known = found ?? { value: closed, revision: 0 };
  }

  /** Agrees on what `decide` makes of the state that it is in; undefined leaves it as it is. */
  async function agree(decide: (found: BreakerState) => BreakerState | undefined): Promise<void> {
    for (let tried = 1; ; tried++) {
      const next = decide(known.value);
      if (!next) return;
      try {
        known = { value: next, revision: await records.write(subject, known.revision, next, leftMs()) };
        return;
      } catch (error) {
        if (!isConflict(error) || tried >= tries) throw error;
        await look();
      }
    }
  }

  /** What throws when it is asked about an error says nothing against it. */
  function tellsOfFailure(error: unknown): boolean {
    try {
      return counts(error);
    } catch {
      return true;
    }
  }

  /** By what is known here, with what has not been written down. */
  function isToOpen(): boolean {
    if (known.value.state !== "closed") return false;
    const all = sum(counted, underWay);
    return decideAfter(known.value.slices, all, policy, { by, now: now() }).state === "open";
  }

  async function write(): Promise<void> {
    if (counted.ended === 0) return;
    const more = counted;
    underWay = more;
    counted = none;
    writtenAt = now();
    try {
      await agree((found) => {
        const at = { by, now: now() };
        if (found.state === "closed") return decideAfter(found.slices, more, policy, at);
        if (!probing || found.state !== "half-open" || found.by !== by) return undefined; // decided, or someone else's
        return more.failed > 0 ? opened("the probe failed", policy.openForMs, at) : closed;
      });
      const { value } = known;
      if (value.state === "closed") probing = false;
      if (value.state !== "open") return;
      open();
      if (value.by !== by) return;
      await pauseConsumer(connection, consumer, value.until, leftMs());
      const { revision } = known;
      await look();
      // reset by hand meanwhile, when there was nothing to resume
      if (known.revision !== revision) await resumeConsumer(connection, consumer, value.until, leftMs());
    } catch (error) {
      trouble(textOf(error));
      counted = sum(counted, underWay); // the next one may be written down
      underWay = none;
      if (isToOpen()) open(); // though nobody else is told
    } finally {
      underWay = none;
      holds = counted.failed > 0 && isToOpen();
      if (!holds) for (const listener of releaseListeners) listener();
    }
  }

  function flush(): Promise<void> {
    writing = writing.then(write);
    return writing;
  }

  return {
    async enter() {
      await look();
      const { value: found } = known;
      let entry: Entry = "nothing";
      await agree((found) => {
        const decided = decideEntry(found, { by, now: now(), until: Math.round(clock.budget.settleBy) });
        entry = decided.entry;
        return decided.next;
      });
      probing = entry === ("probe" as Entry);
      if (probing) await resumeConsumer(connection, consumer, pauseOf(found), leftMs()); // over by our clock, not by the server's
      return entry;
    },
    get state() {
      return isOpen ? "open" : known.value.state;
    },
    ended({ settlement, error }) {
      if (settlement.kind === "return" || (settlement.kind === "dead-letter" && isUnreadable(settlement.reason)))
        return;
      const failed = settlement.kind !== "ack" || settlement.discarded ? tellsOfFailure(error) : false;
      counted = sum(counted, { ended: 1, failed: failed ? 1 : 0 });
      tried = true;
      if (failed) holds ||= isToOpen();
      if (failed || probing || now() >= (writtenAt ?? began) + everyMs) void flush();
    },
    rest() {
      if (counted.ended > 0 && now() >= (writtenAt ?? -Infinity) + restMs) void flush();
    },
    get holds() {
      return holds || isOpen;
    },
    get probing() {
      return probing && !tried;
    },
    flush,
    onOpen(listener) {
      openListeners.push(listener);
    },
    onRelease(listener) {
      releaseListeners.push(listener);
    },
    async probed() {
      await flush();
      if (probing && !tried) {
        // there was nothing to try it with: the next one may
        const again = now();
        await agree((found) =>
          found.state === "half-open" && found.by === by
            ? { ...found, state: "open", until: again, reason: "not tried yet" }
            : undefined,
        ).catch((error: unknown) => trouble(textOf(error)));
      }
      return known.value.state === "closed";
    },
    end: () => news.unsubscribe(),
  };
}

/** Errors that say something about what the handler depends on, and not about its message. */
function countsByDefault(error: unknown): boolean {
  return !(error instanceof NonRetriableError);
}
