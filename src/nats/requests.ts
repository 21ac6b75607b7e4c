/** One request for deliveries. */
export interface Request<End> {
  /** Where the server's words on it come to. */
  readonly subject: string;
  readonly batch: number;
  readonly end: (end: End) => void;
}

/** The requests of one subscription that have not ended. */
export interface Requests<End> {
  add(request: Request<End>): void;
  /** A delivery has come. */
  delivered(): void;
  /** The server has said how a request ends, `given` deliveries to it if it told. One that has ended already is no matter. */
  told(
    subject: string,
    ending: (request: Request<End>, arrived: number) => { given?: number | undefined; end: End },
  ): void;
  /** Waits no longer for a request. */
  giveUp(request: Request<End>, end: End): void;
  endAll(end: End): void;
  /** How many deliveries are still to come. */
  readonly underWay: number;
}

/**
 * The server tells whose a status is, but not whose a delivery is, so they are counted together. A request that was told
 * of ends when all that was given has come: in a cluster a server says that a batch is complete before it hands it out.
 * Those that were not told of end as `full` when there is nothing more to come: of a full one a server before 2.10 says
 * nothing.
 */
export function openRequests<End>(full: End): Requests<End> {
  const untold: Request<End>[] = [];
  const told: { readonly request: Request<End>; readonly end: End; readonly at: number }[] = [];
  let given = 0; // to those that have ended or were told of
  let arrived = 0;

  function asked(): number {
    return untold.reduce((sum, { batch }) => sum + batch, 0);
  }

  function endThose(): void {
    for (let next = told[0]; next && next.at <= arrived; next = told[0]) {
      told.shift();
      next.request.end(next.end);
    }
    if (untold.length === 0 || arrived - given < asked()) return;
    given += asked();
    for (const request of untold.splice(0)) request.end(full);
  }

  return {
    add(request) {
      if (untold.length + told.length === 0) given = arrived; // what came late was asked for by one that was given up
      untold.push(request);
    },
    delivered() {
      arrived += 1;
      endThose();
    },
    told(subject, ending) {
      const at = untold.findIndex((request) => request.subject === subject);
      const request = untold[at];
      if (!request) return;
      untold.splice(at, 1);
      const unclaimed = at === 0 ? Math.max(0, Math.min(arrived - given, request.batch)) : 0; // else an older one's
      const { given: toIt = unclaimed, end } = ending(request, unclaimed);
      given += toIt;
      told.push({ request, end, at: given });
      endThose();
    },
    giveUp(request, end) {
      const at = untold.indexOf(request);
      if (at === 0) given += Math.max(0, Math.min(arrived - given, request.batch)); // what came first was its own
      if (at >= 0) untold.splice(at, 1);
      const promised = told.find((one) => one.request === request);
      if (promised) {
        const lost = Math.max(0, promised.at - arrived); // it will not come any more
        const later = told.splice(told.indexOf(promised)).slice(1);
        told.push(...later.map((one) => ({ ...one, at: one.at - lost })));
        given -= lost;
      }
      request.end(end);
      endThose();
    },
    endAll(end) {
      const all = [...told.splice(0).map(({ request }) => request), ...untold.splice(0)];
      for (const request of all) request.end(end);
    },
    get underWay() {
      return Math.max(0, given + asked() - arrived);
    },
  };
}
