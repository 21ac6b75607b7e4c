import { describe, expect, it } from "vitest";
import { openRequests, type Request } from "../../src/nats/requests.ts";

/** Requests for so many deliveries each, and how they ended, in order. */
function ask(...batches: number[]) {
  const ends: string[] = [];
  const requests = openRequests<string>("full");
  const all: Request<string>[] = [];
  const add = (batch: number) => {
    const subject = `${all.length}`;
    const request = { subject, batch, end: (end: string) => void ends.push(`${subject} ${end}`) };
    all.push(request);
    requests.add(request);
    return request;
  };
  for (const batch of batches) add(batch);
  const deliver = (count: number) => {
    for (let n = 0; n < count; n++) requests.delivered();
  };
  /** The server tells of one; `given` deliveries to it, if it says so. Answers how many it seemed to have been given. */
  const tell = (subject: number, end: string, given?: number) => {
    let seemed: number | undefined;
    requests.told(`${subject}`, (_, arrived) => {
      seemed = arrived;
      return { given, end };
    });
    return seemed;
  };
  return { ends, requests, all, add, deliver, tell };
}

describe("a request", () => {
  it("ends by itself with its last delivery, several of them together", () => {
    const { ends, requests, deliver } = ask(2, 3);
    deliver(4);
    expect(ends).toEqual([]);
    expect(requests.underWay).toBe(1);
    deliver(1);
    expect(ends).toEqual(["0 full", "1 full"]);
    expect(requests.underWay).toBe(0);
  });

  it("that the server tells of has been given what has come of it, unless it says how much", () => {
    const { ends, tell, deliver } = ask(5);
    deliver(2);
    expect(tell(0, "drained")).toBe(2);
    expect(ends).toEqual(["0 drained"]);
  });

  it("of which a status comes before its deliveries, ends with the last of those", () => {
    const { ends, requests, tell, deliver } = ask(5);
    deliver(1);
    tell(0, "more", 3);
    expect(ends).toEqual([]);
    expect(requests.underWay).toBe(2);
    deliver(1);
    expect(ends).toEqual([]);
    deliver(1);
    expect(ends).toEqual(["0 more"]);
  });

  it("has what came first, and a later one what is beyond it", () => {
    const { ends, tell, deliver } = ask(2, 3);
    deliver(1);
    expect(tell(1, "drained")).toBe(0); // as long as nobody has told of the older one
    expect(tell(0, "more")).toBe(1);
    expect(ends).toEqual(["1 drained", "0 more"]);
  });

  it("that was told of does not end before an older one whose deliveries are still to come", () => {
    const { ends, tell, deliver } = ask(2, 2);
    tell(0, "more", 2);
    tell(1, "drained", 0);
    expect(ends).toEqual([]);
    deliver(2);
    expect(ends).toEqual(["0 more", "1 drained"]);
  });

  it("that has ended already is no matter to what is said of it later", () => {
    const { ends, requests, tell, deliver } = ask(1, 1);
    deliver(2);
    expect(tell(0, "again", 0)).toBeUndefined();
    expect(ends).toEqual(["0 full", "1 full"]);
    expect(requests.underWay).toBe(0);
  });
});

describe("a request that is given up", () => {
  it("in the middle leaves the others what is theirs", () => {
    const { ends, requests, all, deliver } = ask(2, 3, 1);
    requests.giveUp(all[1] as Request<string>, "timed-out");
    expect(requests.underWay).toBe(3);
    deliver(3);
    expect(ends).toEqual(["1 timed-out", "0 full", "2 full"]);
  });

  it("as the oldest one has had what came so far", () => {
    const { ends, requests, all, deliver } = ask(5, 2);
    deliver(3);
    requests.giveUp(all[0] as Request<string>, "timed-out");
    expect(requests.underWay).toBe(2);
    deliver(1);
    expect(ends).toEqual(["0 timed-out"]);
    deliver(1);
    expect(ends).toEqual(["0 timed-out", "1 full"]);
  });

  it("though it was promised deliveries holds up no later one for them", () => {
    const { ends, requests, all, tell, deliver } = ask(3, 2);
    tell(0, "more", 3);
    tell(1, "drained", 1);
    deliver(1);
    requests.giveUp(all[0] as Request<string>, "timed-out");
    expect(ends).toEqual(["0 timed-out"]);
    expect(requests.underWay).toBe(1);
    deliver(1);
    expect(ends).toEqual(["0 timed-out", "1 drained"]);
  });

  it("leaves deliveries that come late to none of those that are asked later", () => {
    const { ends, requests, all, add, deliver } = ask(3);
    requests.giveUp(all[0] as Request<string>, "timed-out");
    deliver(2); // late
    expect(requests.underWay).toBe(0);
    add(2);
    expect(requests.underWay).toBe(2);
    deliver(1);
    expect(ends).toEqual(["0 timed-out"]);
    deliver(1);
    expect(ends).toEqual(["0 timed-out", "1 full"]);
  });

  it("is told once, as all are when everything ends", () => {
    const { ends, requests, all, tell } = ask(1, 2, 3);
    requests.giveUp(all[0] as Request<string>, "timed-out");
    tell(2, "more", 3);
    requests.endAll("lost");
    requests.endAll("lost");
    expect(ends.toSorted()).toEqual(["0 timed-out", "1 lost", "2 lost"]);
  });
});
