import { createInbox } from "@nats-io/nats-core";
import { SortieError, textOf } from "../errors.ts";
import { type Connection, onClosed, onDenied } from "./connection.ts";
import { type ConsumerInfo, consumerInfo, isFull } from "./consumer-info.ts";
import { type Delivery, deliveryOf } from "./delivery.ts";
import { permissionsHint } from "./denied.ts";
import { serverIsAtLeast } from "./jetstream.ts";
import { endOf, givenBy, type Limits, missing, type PullEnd, type RequestEnd } from "./pull-status.ts";
import { openRequests, type Request } from "./requests.ts";
import { point } from "./within.ts";

/** What one pull asks for. */
interface PullRequest {
  readonly batch: number;
  /** The most bytes, of payloads, headers and subjects together; Infinity for any number. */
  readonly maxBytes: number;
  /** How long to wait for what is not there yet. 0 for not at all. */
  readonly waitMs: number;
  /** How long the server may be silent beyond that. */
  readonly patienceMs: number;
}

export interface Puller {
  /**
   * Asks for deliveries, also while others are under way, and answers when the last of them has been handed over.
   * @throws SortieError `consumer-missing`, `stream-refused`, `permission-denied`, `connection-lost` or `timed-out`.
   */
  pull(request: PullRequest): Promise<PullEnd>;
  /** How many deliveries have been asked for and have not come yet. */
  readonly underWay: number;
  /** How many more messages wait on the consumer, as the last delivery said. */
  readonly pending: number;
  /** Whether the consumer limits what may be outstanding. */
  readonly bounded: boolean;
  /** Gives up what is still being asked for. */
  close(): void;
}

/** How long nothing may come of a pull of which something came. */
const quietMs = 250;

/**
 * Pulls from one consumer over one subscription. A pull that does not wait carries `no_wait`; where deliveries may be
 * outstanding up to a limit (`bounded`) an `expires` of a few milliseconds as well, for the server leaves a bare `no_wait`
 * unanswered once the limit is reached. A busy server may let these pass unserved: unless the last delivery said that no more
 * were waiting, the pull is repeated once, with more patience.
 */
export function openPuller(
  connection: Connection,
  { stream, consumer, bounded }: { stream: string; consumer: string; bounded: boolean },
  onDelivery: (delivery: Delivery) => void,
): Puller {
  const what = `Consumer "${consumer}" of stream "${stream}"`;
  const prefix = createInbox(connection.inboxPrefix);
  const subjectOfPulls = `$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`;
  const limits: Limits = { batch: Infinity, expiresMs: Infinity, maxBytes: Infinity, outstanding: bounded };
  const requests = openRequests<RequestEnd>("more");
  let pulls = 0;
  let pending: number | undefined; // as long as nothing has come, nobody knows
  let heardAt = Date.now();
  const mute = new Set<Request<RequestEnd>>(); // may end without a word
  let quiet: ReturnType<typeof setTimeout> | undefined;

  const subscription = connection.subscribe(`${prefix}.*`, {
    callback: (error, message) => {
      const delivery = error ? undefined : deliveryOf(message);
      heardAt = Date.now();
      if (delivery) {
        pending = delivery.pending;
        requests.delivered();
        onDelivery(delivery);
        if (mute.size > 0) quiet ??= setTimeout(whenQuiet, quietMs);
      } else if (error) {
        requests.endAll(lost(error.message));
      } else {
        requests.told(message.subject, ({ batch }, unclaimed) => {
          const given = givenBy(message, batch);
          return { given, end: endOf(message, given ?? unclaimed, pending ?? 0, what, limits) };
        });
      }
    },
  });
  const listens = onClosed(connection, (error) =>
    requests.endAll(lost(error ? textOf(error) : "the connection was closed")),
  );
  const isToldOfDenial = onDenied(connection, (subject) => {
    if (subject !== subjectOfPulls) return;
    requests.endAll(
      new SortieError(
        "permission-denied",
        `${what}: this login may not pull: allow it to publish to ${subject}. ${permissionsHint}`,
      ),
    );
  });

  // a server before 2.10 does not answer for a consumer that is missing
  if (!serverIsAtLeast(connection, "2.10")) {
    consumerInfo(connection, { stream, consumer }, 5_000).then(
      ({ error }) => error?.code === 404 && requests.endAll(missing(what)),
      () => {},
    );
  }

  function lost(reason: string): SortieError {
    return new SortieError("connection-lost", `${what}: ${reason}`);
  }

  /** The server says nothing of a request whose bytes are used up to the last one: it is over where no more comes of it. */
  function whenQuiet(): void {
    quiet = undefined;
    if (mute.size === 0) return;
    const leftMs = heardAt + quietMs - Date.now();
    if (leftMs > 0) quiet = setTimeout(whenQuiet, leftMs);
    else if (pending !== 0) for (const request of mute) requests.giveUp(request, "more");
  }

  function ask(
    asked: { batch: number; maxBytes: number; expiresMs: number; wait?: boolean },
    patienceMs: number,
  ): Promise<RequestEnd> {
    const { batch, maxBytes, expiresMs, wait = false } = asked;
    pulls += 1;
    const subject = `${prefix}.${pulls}`;
    const silenceMs = expiresMs + patienceMs;
    const askedAt = Date.now();
    return new Promise<RequestEnd>((resolve) => {
      let timer = setTimeout(watch, silenceMs);
      const request: Request<RequestEnd> = {
        subject,
        batch,
        end(end) {
          mute.delete(request);
          clearTimeout(timer);
          resolve(end);
        },
      };
      function watch(): void {
        const leftMs = Math.max(heardAt, askedAt) + silenceMs - Date.now(); // a large batch takes its time over a slow link
        const silent = () => `${what} did not answer a pull within ${Math.round(silenceMs)} ms`;
        if (leftMs > 0) timer = setTimeout(watch, leftMs);
        else requests.giveUp(request, new SortieError("timed-out", silent()));
      }
      requests.add(request);
      if (maxBytes < Infinity && !(wait && limits.outstanding)) mute.add(request);
      const body = {
        batch,
        ...(!wait && { no_wait: true }),
        ...(expiresMs > 0 && { expires: Math.max(1, Math.round(expiresMs)) * 1_000_000 }),
        // messages of one size would use up a round number exactly, time after time
        ...(maxBytes < Infinity && { max_bytes: maxBytes - (maxBytes > 1_000 ? pulls % 8 : 0) }),
      };
      connection.publish(subjectOfPulls, JSON.stringify(body), { reply: subject });
    });
  }

  async function askFor({ batch, maxBytes, waitMs, patienceMs }: PullRequest): Promise<RequestEnd> {
    // a request for any number of bytes is none that the consumer's limit is about
    const mostBytes = maxBytes === Infinity ? Infinity : Math.min(maxBytes, limits.maxBytes);
    const limited = { batch: Math.min(batch, limits.batch), maxBytes: mostBytes };
    if (waitMs > 0) return ask({ ...limited, expiresMs: Math.min(waitMs, limits.expiresMs), wait: true }, patienceMs);
    const end = await ask({ ...limited, expiresMs: limits.outstanding ? 3 : 0 }, patienceMs * 0.8);
    return end === "lapsed" && pending !== 0 ? ask({ ...limited, expiresMs: 25 }, patienceMs * 0.8) : end;
  }

  async function pull(asked: PullRequest): Promise<PullEnd> {
    let end = await askFor(asked);
    for (let learnt = 0; end === "limited" && learnt < 3; learnt++) end = await askFor(asked);
    if (end === "limited") return "again";
    if (end === "lapsed") return "full"; // an empty one answers at once
    if (end === "gone" || (end instanceof SortieError && end.code === "timed-out")) {
      const silence = end === "gone" ? lost("nobody answers for it, as while it has no leader") : end;
      limits.outstanding ||= silence === end; // there may be a limit that its definition does not have
      return explainSilence(silence, Math.max(asked.patienceMs * 0.2, Math.min(asked.patienceMs, 500)));
    }
    if (end instanceof SortieError) throw end;
    return end;
  }

  /**
   * Nobody answers a pull on a consumer that is missing, that has no leader for the moment, or that is full, nor over a
   * connection that is dead.
   */
  async function explainSilence(silence: SortieError, ms: number): Promise<PullEnd> {
    let info: ConsumerInfo;
    try {
      info = await consumerInfo(connection, { stream, consumer }, ms);
    } catch (error) {
      if (silence.code === "connection-lost") return "again";
      throw new SortieError("connection-lost", `${silence.message}, nor a look-up of the consumer: ${textOf(error)}`, {
        cause: error,
      });
    }
    if (info.error?.code === 404) throw missing(what, silence);
    return isFull(info) ? "full" : "again";
  }

  return {
    pull: (asked) => point("a pull", pull(asked)),
    get underWay() {
      return requests.underWay;
    },
    get pending() {
      return pending ?? 0;
    },
    get bounded() {
      return limits.outstanding;
    },
    close() {
      listens();
      isToldOfDenial();
      subscription.unsubscribe();
      requests.endAll("again"); // nobody waits any more
      clearTimeout(quiet);
    },
  };
}
