import { SortieError, textOf } from "../errors.ts";
import { maxPayloadOf } from "../nats/connection.ts";
import { type ConsumerInfo, consumerInfo, isFull } from "../nats/consumer-info.ts";
import { openPuller } from "../nats/pull.ts";
import { pause, point, within } from "../nats/within.ts";
import { type Breaker, openBreaker } from "./breaker.ts";
import type { Entry } from "./breaker-state.ts";
import { longestWaitMs } from "./budget.ts";
import type { Circumstances } from "./circumstances.ts";
import { type Hand, openHand } from "./hand.ts";
import type { Binding } from "./handler.ts";
import { askLeft, type Left, openLeft } from "./left.ts";
import { openPace, slotWaitMs } from "./pace.ts";
import { planPull } from "./pull-size.ts";
import type { ConsumerReport } from "./report.ts";
import { type Source, sourcesOf } from "./source.ts";
import { openTally } from "./tally.ts";
import type { Limits } from "./turns.ts";

/** How long to go on asking for what cannot be asked for at the moment, as while a consumer has no leader. */
const againForMs = 10_000;

/** How long a link may stand still before it is taken for dead. */
const silenceMs = 2_000;

/**
 * Pulls, handles and settles for one consumer until nothing is left to pull or the time is over. Never throws: what went
 * wrong is in the report.
 */
export async function runConsumer(binding: Binding, shared: Circumstances): Promise<ConsumerReport> {
  const { now } = shared.clock;
  const left = openLeft(binding.consumer, now);
  const tally = openTally(binding, shared.log, left);
  const { report, trouble } = tally;
  const limits: Limits = { pace: openPace(binding, shared), breaker: openBreaker(binding, shared, trouble) };
  const { pace, breaker } = limits;
  const hand = openHand(binding, shared, tally, limits);
  const sources = sourcesOf(binding.consumer);
  const pull = (source: Source, probing = false) =>
    pullFrom(source, binding, hand, left, shared, { ...limits, probing });
  if (breaker) {
    breaker.onOpen(hand.stop);
    hand.onChange(() => hand.atRest && breaker.rest());
  }

  /** One message after the other, until a handler has ended: those that cannot be read, or were handled, tell nothing. */
  async function probe(source: Source, breaker: Breaker): Promise<void> {
    for (let taken = -1; breaker.probing && hand.taken > taken; ) {
      taken = hand.taken;
      await pull(source, true);
      await point(
        "waiting for the probe of a circuit breaker",
        hand.until(() => hand.size === 0),
      );
    }
  }

  let ends: PromiseSettledResult<"drained" | "budget">[] = [];
  let entry: Entry | undefined;
  // in one flight with the first thing that is asked for
  const found = lookUp(binding, shared);
  try {
    entry = breaker ? await breaker.enter() : "all";
    if (breaker && entry === "probe") {
      for (const source of sources) await probe(source, breaker);
      entry = (await breaker.probed()) ? "all" : "nothing";
    }
    if (entry === "all") {
      ends = await Promise.allSettled(sources.map((source) => pull(source)));
    }
  } catch (reason) {
    ends = [{ status: "rejected", reason }];
  }
  hand.noMore();
  const drained = ends.length > 0 && ends.every((end) => end.status === "fulfilled" && end.value === "drained");
  const asked = shared.left && !drained ? askLeft(binding, hand, shared) : undefined;
  await Promise.all([hand.emptied(), breaker?.flush()]);
  await breaker?.flush(); // what has ended meanwhile
  breaker?.end();
  for (const end of ends) if (end.status === "rejected") trouble(textOf(end.reason));
  if (breaker && entry) report.breaker = breaker.state; // else it is not known
  if (ends.some(({ status }) => status === "rejected")) report.ended = "failed";
  else if (breaker && breaker.state !== "closed") report.ended = "open";
  else if (pace?.over) report.ended = "limited";
  else if (drained) report.ended = "drained";
  const before = report.pulled === 0 && ["drained", "open"].includes(report.ended) ? await found : undefined;
  if (before && report.ended === "drained" && (before.paused || isFull(before))) report.ended = "held";
  const held = before && report.ended !== "drained" ? { info: before, unsettled: 0 } : undefined;
  const isPaced = report.ended === "limited" && pace !== undefined && pace.next <= now() + slotWaitMs;
  const isHeld = !isPaced && report.ended !== "drained" && report.ended !== "budget";
  const { ready, ...known } = left.sum(isHeld, (await asked) ?? held);
  Object.assign(report, { ...known, more: ready > 0 });
  // more invocations at the same time do not make a rate limit let through more
  shared.left?.({ ready: isPaced ? Math.min(ready, report.acked) : ready, done: report.acked });
  return report;
}

/** Asks what the server knows of a consumer; undefined where it does not say. */
async function lookUp({ consumer }: Binding, { connection, clock }: Circumstances): Promise<ConsumerInfo | undefined> {
  const ms = Math.min(silenceMs, clock.budget.settleBy - clock.now());
  const named = { stream: consumer.stream.name, consumer: consumer.name };
  const info = await consumerInfo(connection, named, ms).catch(() => undefined);
  clock.told(info?.ts);
  return info?.error ? undefined : info;
}

/** Pulls from one source whenever the hand has room for more, until nothing is left there or the time is over. */
async function pullFrom(
  source: Source,
  { consumer, batch }: Binding,
  hand: Hand,
  left: Left,
  { connection, clock, ...shared }: Circumstances,
  { pace, breaker, probing }: Limits & { readonly probing: boolean },
): Promise<"drained" | "budget"> {
  const { now, leaving } = clock;
  const lingerMs = probing ? 0 : shared.lingerMs; // there is something to try it with, or the next one tries it
  const { mostOutstanding } = source;
  const puller = openPuller(connection, { ...source, bounded: mostOutstanding < Infinity }, (delivery) => {
    lastAt = now();
    firstAt ??= lastAt;
    taken += 1;
    waiting = delivery.pending;
    hand.take(source.kind, delivery);
  });
  const leftMs = () => clock.budget.stopAt - clock.roundTripMs - (lingerMs > 0 ? 20 : 0) - now();
  const handBackBy = () => clock.budget.settleBy - clock.roundTripMs; // what comes later can't be handed back in time
  const { maxBytes: mostBytes } = consumer;
  // each advisory stands for a message that is read as text: nearly three times its bytes
  const readable = Math.max(1, Math.floor(mostBytes / (3 * maxPayloadOf(connection))));
  const most = Math.min(consumer.batch, mostOutstanding, source.kind === "exhausted" ? readable : Infinity);
  const ended = Promise.withResolvers<"drained" | "budget">();
  let lastAt = now(); // when something came
  let firstAt: number | undefined; // of the pull under way, when something came
  let taken = 0;
  let waiting: number | undefined; // messages, as the server said last
  let flightMs = 0;
  let pulls = 0; // under way
  let bytesUnderWay = 0; // at most
  let drained = false;
  let again = false; // once more when the last handler has ended
  let full: number | undefined; // how many deliveries in hand it was full with: it has room when one of them is settled
  let isServed = false; // by the last pull, with all that it asked for
  let oversized = false; // the next message has more bytes than may be in hand: it comes alone
  let troubledAt: number | undefined;
  let pausing = false;

  const listens = hand.onChange(look);
  leaving.addEventListener("abort", look);
  look();
  try {
    return await point("waiting for handlers, or for deliveries", ended.promise);
  } finally {
    listens();
    // what is under way comes to us, and is handed back
    const come = hand.until(() => pulls === 0);
    await within(handBackBy() - now(), "waiting for what is under way", come).catch(() => {});
    puller.close();
    left.waiting(source.kind, waiting, isServed);
  }

  /** Asks for more where there is room: in the flight of what made the room. */
  function look(): void {
    if (pausing) return;
    if (leaving.aborted || leftMs() <= 0) {
      if (troubledAt === undefined) ended.resolve("budget");
      else ended.reject(unavailable(source, now() - troubledAt));
      return;
    }
    if (pace?.over || (breaker && breaker.state !== "closed" && !probing)) {
      ended.resolve("budget");
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
    const mine = hand.of(source.kind); // a busy source does not starve the others
    if (full !== undefined && mine.size >= full) return none;
    if (oversized) return pulls === 0 && hand.size === 0 ? { messages: 1, bytes: Infinity } : none;
    const { underWay } = puller;
    const [messages, unsettled] = [Math.max(0, mine.messages - hand.aside) + underWay, mine.size + underWay];
    const { handlerMs, perHandler } = hand;
    const size = batch?.size ?? 1;
    const inHand = { messages, unsettled, bytes: hand.bytes + bytesUnderWay, handlerMs, size, perHandler };
    const concurrency = Math.max(1, hand.places); // one waits for a place
    const planned = planPull({ ...inHand, concurrency, most, mostBytes, flightMs, leftMs: leftMs() });
    if (probing) return { ...planned, messages: pulls + taken > 0 ? 0 : Math.min(planned.messages, 1) };
    const paced = pace ? pace.room - (messages - hand.running) : Infinity;
    const allowed = Math.min(mostOutstanding - mine.size, shared.messages - hand.taken - underWay);
    return { ...planned, messages: Math.max(0, Math.min(planned.messages, allowed, paced)) };
  }

  async function pull(batch: number, maxBytes: number): Promise<void> {
    const asked = now();
    const inTimeMs = leftMs() - 1.5 * (hand.handlerMs ?? 0); // what comes later would not be finished
    const waitMs = Math.max(0, Math.min(lastAt + lingerMs - asked, inTimeMs, longestWaitMs));
    const heldThen = hand.of(source.kind).size;
    const patienceMs = Math.min(Math.max(silenceMs, 20 * flightMs), handBackBy() - asked);
    const isOnly = pulls === 0; // else nobody knows what comes of which
    if (isOnly) firstAt = undefined;
    pulls += 1;
    bytesUnderWay += maxBytes;
    try {
      const end = await puller.pull({ batch, maxBytes, waitMs, patienceMs });
      if (isOnly && waitMs === 0 && end !== "full" && end !== "again") {
        flightMs = Math.max(0, (firstAt ?? now()) - asked); // less the time that many take to come
        clock.learn(flightMs);
      }
      oversized = end === "oversized";
      isServed = end === "more";
      if (end === "drained") waiting = 0;
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
    await rest(250);
  }

  async function rest(ms: number): Promise<void> {
    pausing = true;
    await pause(Math.min(ms, leftMs()), "waiting to pull again");
    pausing = false;
    look();
  }
}

function unavailable({ stream, consumer }: Source, ms: number): SortieError {
  return new SortieError(
    "connection-lost",
    `Consumer "${consumer}" of stream "${stream}" could not be pulled from for ${(ms / 1_000).toFixed(1)} s: the server holds it back, nobody leads it, or this login may not pull ($JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}), or has no JetStream. Look at it: nats consumer info ${stream} ${consumer}`,
  );
}
