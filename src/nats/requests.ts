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

/** The requests of one subscription, each of which ends by the server's word on it or when all that it asked for has come. */
export interface Requests<End> {
  add(request: Request<End>): void;
  /** A delivery has come. */
  delivered(): void;
  /** A status has come; `endOf` says what it ends its request with, if anything, which was given so many deliveries. */
  told(status: Msg, endOf: (given: number) => End | undefined): void;
  /** Waits no longer for the server's word on a request. */
  giveUp(request: Request<End>, end: End): void;
  endAll(end: End): void;
  /** How many deliveries have been asked for and have not come. */
  readonly underWay: number;
}

/**
 * The server tells whose a status is but not whose a delivery is, and it serves in turn those that wait. So deliveries are
 * taken for the oldest requests' until a status says how many its request was given. A request that was given all is told
 * so only by some servers (from 2.10, where bytes are limited): it ends by the count, as `full`, and what is said of it
 * later sets the count right.
 */
export function openRequests<End>(full: End): Requests<End> {
  const untold = new Map<string, Request<End>>(); // without a status so far, oldest first
  let waiting: Request<End>[] = []; // those of them that have not ended
  let asked = 0; // by the untold
  let given = 0; // to the untold
  let counted = 0; // of these, for those of them that have ended

  function endByCount(): void {
    for (let next = waiting[0]; next && given - counted >= next.batch; next = waiting[0]) {
      waiting.shift();
      counted += next.batch;
      next.end(full);
    }
    if (given >= asked) forgetAll(); // each was given all
  }

  function forgetAll(): void {
    untold.clear();
    waiting = [];
    asked = given = counted = 0;
  }

  function close(request: Request<End>, itsOwn: number, end: End): void {
    untold.delete(request.subject);
    asked -= request.batch;
    given -= itsOwn;
    const at = waiting.indexOf(request);
    if (at === -1) counted -= request.batch;
    else {
      waiting.splice(at, 1);
      request.end(end);
    }
    endByCount();
  }

  return {
    add(request) {
      untold.set(request.subject, request);
      waiting.push(request);
      asked += request.batch;
    },
    delivered() {
      waiting[0]?.heard?.();
      if (untold.size === 0) return; // late: its request was given up
      given += 1;
      endByCount();
    },
    told({ subject, headers }, endOf) {
      const request = untold.get(subject);
      if (!request) return;
      request.heard?.();
      const left = headers?.get("Nats-Pending-Messages");
      const itsOwn = left ? request.batch - Number(left) : 0;
      const end = endOf(itsOwn);
      if (end !== undefined) close(request, itsOwn, end);
    },
    giveUp(request, end) {
      close(request, request === waiting[0] ? Math.max(0, given - counted) : 0, end);
    },
    endAll(end) {
      const left = waiting;
      forgetAll();
      for (const request of left) request.end(end);
    },
    get underWay() {
      return Math.max(0, asked - given);
    },
  };
}
