import type { Msg } from "@nats-io/nats-core";

/** One request for deliveries. */
export interface Request<End> {
  /** Where the server's words on it come to. */
  readonly subject: string;
  readonly batch: number;
  /** Told of every word of the server, heartbeats included. */
  heard?(): void;
  end(end: End): void;
}

/** The requests of one subscription, each of which ends when all that the server gave to it has come. */
export interface Requests<End> {
  add(request: Request<End>): void;
  /** A delivery has come. */
  delivered(): void;
  /** A status has come; `endOf` says what it ends its request with, if anything, which was given so many deliveries. */
  told(status: Msg, endOf: (given: number) => End | undefined): void;
  /** Waits no longer for a request. */
  giveUp(request: Request<End>, end: End): void;
  endAll(end: End): void;
  /** How many deliveries are still to come, as far as that is known. */
  readonly underWay: number;
}

/**
 * The server tells whose a status is but not whose a delivery is, and serves in turn those that wait. So only the sums are
 * known: a request of which a status said how much it was given ends when as many deliveries have come, and after these
 * one that was not told of ends as `full` when as many have come as it asked for, for a server says nothing of a full one
 * (before 2.10, or where bytes are not limited), or says so before the deliveries (in a cluster, which agrees on them first).
 * What is said of it later sets the sums right.
 */
export function openRequests<End>(full: End): Requests<End> {
  const untold = new Map<string, Request<End>>(); // by subject; also those that ended as full
  let waiting: Request<End>[] = []; // untold, and not ended
  let ending: { readonly request: Request<End>; readonly given: number; readonly end: End }[] = []; // told
  let arrived = 0;
  let counted = 0; // of these, for requests that have ended
  let expected = 0; // by those that have not

  function endThose(): void {
    for (;;) {
      const told = ending[0];
      const next = told?.request ?? waiting[0];
      const due = told?.given ?? next?.batch ?? Infinity;
      if (!next || arrived - counted < due) break;
      if (told) ending.shift();
      else waiting.shift();
      counted += due;
      expected -= due;
      next.end(told ? told.end : full);
    }
    if (waiting.length === 0 && ending.length === 0) forget();
  }

  function forget(): void {
    untold.clear();
    waiting = [];
    ending = [];
    arrived = counted = expected = 0;
  }

  return {
    add(request) {
      untold.set(request.subject, request);
      waiting.push(request);
      expected += request.batch;
    },
    delivered() {
      if (expected === 0) return; // late: its request was given up
      (ending[0]?.request ?? waiting[0])?.heard?.();
      arrived += 1;
      endThose();
    },
    told({ subject, headers }, endOf) {
      const request = untold.get(subject);
      if (!request) return;
      request.heard?.();
      const left = headers?.get("Nats-Pending-Messages");
      const given = left ? request.batch - Number(left) : 0;
      const end = endOf(given);
      if (end === undefined) return;
      untold.delete(subject);
      const at = waiting.indexOf(request);
      if (at === -1) counted -= request.batch - given;
      else {
        waiting.splice(at, 1);
        expected -= request.batch - given;
        ending.push({ request, given, end });
      }
      endThose();
    },
    giveUp(request, end) {
      const told = ending.find((one) => one.request === request);
      const due = told?.given ?? request.batch;
      const first = ending[0]?.request ?? waiting[0];
      untold.delete(request.subject);
      waiting = waiting.filter((one) => one !== request);
      ending = ending.filter((one) => one !== told);
      expected -= due;
      if (request === first) counted += Math.min(due, arrived - counted);
      request.end(end);
      endThose();
    },
    endAll(end) {
      const all = [...ending.map(({ request }) => request), ...waiting];
      forget();
      for (const request of all) request.end(end);
    },
    get underWay() {
      return Math.max(0, expected - (arrived - counted));
    },
  };
}
