import { SortieError, textOf } from "../errors.ts";
import { openPuller } from "../nats/pull.ts";
import { pause, point, within } from "../nats/within.ts";
import type { Circumstances } from "./circumstances.ts";
import { type Hand, openHand } from "./hand.ts";
import type { Binding } from "./handler.ts";
import { planPull } from "./pull-size.ts";
import type { ConsumerReport } from "./report.ts";
import { type Source, sourcesOf } from "./source.ts";
import { openTally } from "./tally.ts";

/** How long to go on asking for what cannot be asked for at the moment, as while a consumer has no leader. */
const againForMs = 10_000;

/** A pull that waits does not notice that its consumer was paused and is resumed, nor that the network is gone. */
const longestWaitMs = 5_000;

/**
 * Pulls, handles and settles for one consumer until nothing is left to pull or the time is over. Never throws: what went
 * wrong is in the report.
 */
export async function runConsumer(binding: Binding, shared: Circumstances): Promise<ConsumerReport> {
  const tally = openTally(binding, shared.log);
  const { report } = tally;
  const hand = openHand(binding, shared, tally);
  const pulls = sourcesOf(binding.consumer).map((source) => pullFrom(source, binding, hand, shared));
  const ends = await Promise.allSettled(pulls);
  await hand.emptied();
  for (const end of ends) if (end.status === "rejected") tally.trouble(textOf(end.reason));
  if (ends.some(({ status }) => status === "rejected")) report.ended = "failed";
  else if (ends.every((end) => end.status === "fulfilled" && end.value === "drained")) report.ended = "drained";
  return report;
}

/** Pulls from one source whenever the hand has room for more, until nothing is left there or the time is over. */
async function pullFrom(
  source: Source,
  { consumer, batch }: Binding,
  hand: Hand,
  { connection, clock, lingerMs }: Circumstances,
): Promise<"drained" | "budget"> {
  const { now, signal } = clock;
  const { mostOutstanding } = source;
  const puller = openPuller(connection, { ...source, bounded: mostOutstanding < Infinity }, (delivery) => {
    lastAt = now();
    hand.take(source.kind, delivery);
  });
  const leftMs = () => clock.budget.stopAt - clock.slowestMs - (lingerMs > 0 ? 20 : 0) - now();
  const handBackBy = () => clock.budget.settleBy - clock.slowestMs; // what comes later can't be handed back in time
  const { maxBytes: mostBytes } = consumer;
  const concurrency = consumer.concurrency * (batch?.size ?? 1);
  const most = Math.min(consumer.batch, mostOutstanding);
  const ended = Promise.withResolvers<"drained" | "budget">();
  let lastAt = now(); // when something came
  let flightMs = 0;
  let pulls = 0; // under way
  let bytesUnderWay = 0; // at most
  let drained = false;
  let again = false; // once more when the last handler has ended
  let full: number | undefined; // how many deliveries in hand it was full with: it has room when one of them is settled
  let oversized = false; // the next message has more bytes than may be in hand: it comes alone
  let troubledAt: number | undefined;
  let pausing = false;

  const listens = hand.onChange(look);
  look();
  try {
    return await point("waiting for handlers, or for deliveries", ended.promise);
  } finally {
    listens();
    // what is under way comes to us, and is handed back
    const come = hand.until(() => pulls === 0);
    await within(handBackBy() - now(), "waiting for what is under way", come).catch(() => {});
    puller.close();
  }

  /** Asks for more where there is room: in the flight of what made the room. */
  function look(): void {
    if (pausing) return;
    if (signal.aborted || leftMs() <= 0) {
      if (troubledAt === undefined) ended.resolve("budget");
      else ended.reject(unavailable(source, now() - troubledAt));
      return;
    }
    if (again && hand.messages === 0) again = drained = false;
    const { messages, bytes } = plan();
    if (messages > 0) void hand.during(pull(messages, bytes));
    else if (pulls === 0 && drained && !again) ended.resolve("drained");
    else if (pulls === 0 && hand.size === 0) ended.resolve("budget"); // not even one would be finished
  }

  function plan() {
    const none = { messages: 0, bytes: 0 };
    // what is there has been asked for, or may not be given yet
    if (drained || (pulls > 0 && (puller.bounded || puller.pending <= puller.underWay))) return none;
    if (full !== undefined && hand.size >= full) return none;
    if (oversized) return pulls === 0 && hand.size === 0 ? { messages: 1, bytes: Infinity } : none;
    const { underWay } = puller;
    const [messages, unsettled] = [hand.messages + underWay, hand.size + underWay];
    const inHand = { messages, unsettled, bytes: hand.bytes + bytesUnderWay, handlerMs: hand.handlerMs };
    const planned = planPull({ ...inHand, concurrency, most, mostBytes, flightMs, leftMs: leftMs() });
    return { ...planned, messages: Math.min(planned.messages, mostOutstanding - hand.size) };
  }

  async function pull(batch: number, maxBytes: number): Promise<void> {
    const asked = now();
    const waitMs = Math.max(0, Math.min(lastAt + lingerMs - asked, leftMs(), longestWaitMs));
    const heldThen = hand.size;
    const patienceMs = Math.min(flightMs > 0 ? 250 + 20 * flightMs : 2_500, handBackBy() - asked);
    pulls += 1;
    bytesUnderWay += maxBytes;
    try {
      const end = await puller.pull({ batch, maxBytes, waitMs, patienceMs });
      if (waitMs === 0 && end !== "full" && end !== "again") {
        flightMs = now() - asked;
        clock.learn(flightMs);
      }
      oversized = end === "oversized";
      full = end === "full" && heldThen > 0 ? heldThen : undefined;
      if (end === "drained" || (end === "full" && !full)) {
        drained = now() + 10 >= lastAt + lingerMs;
        again = drained && source.kind === "own" && hand.messages > 0;
      }
      troubledAt = end === "again" ? (troubledAt ?? asked) : undefined;
      if (troubledAt !== undefined) void lookLater(troubledAt);
    } catch (error) {
      ended.reject(error);
    } finally {
      pulls -= 1;
      bytesUnderWay = pulls === 0 ? 0 : bytesUnderWay - maxBytes; // Infinity less itself is no number
    }
  }

  async function lookLater(since: number): Promise<void> {
    if (now() - since > againForMs) return ended.reject(unavailable(source, now() - since));
    pausing = true;
    await pause(Math.min(250, leftMs()), "waiting to pull again");
    pausing = false;
    look();
  }
}

function unavailable({ stream, consumer }: Source, ms: number): SortieError {
  return new SortieError(
    "connection-lost",
    `Consumer "${consumer}" of stream "${stream}" could not be pulled from for ${(ms / 1_000).toFixed(1)} s: the server holds it back, or nobody leads it. Look at it: nats consumer info ${stream} ${consumer}`,
  );
}
