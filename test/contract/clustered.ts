import { afterAll, afterEach, beforeAll, expect, vi } from "vitest";
import type { App } from "../../src/app.ts";
import { type InvocationOptions, invoke } from "../../src/consume/invocation.ts";
import type { InvocationReport } from "../../src/consume/report.ts";
import { connect } from "../../src/nats/connection.ts";
import { type Applied, apply } from "../../src/provision/apply.ts";
import { type Cluster, type Node, startCluster } from "../support/cluster.ts";
import { type Observer, observe } from "../support/system.ts";
import { deadLetters, jobs, stored, unfinished, worker } from "./jobs.ts";

/** An app in a cluster, and the nodes by what they are to the jobs' consumer. */
export interface Clustered {
  readonly leader: Node;
  /** The others, the one that leads fewest streams first. */
  readonly followers: readonly [Node, Node];
  /** What applying it once more did. */
  readonly again: readonly Applied[];
  /** One invocation that is connected to a node; twenty seconds long at most unless told otherwise. */
  run(node: Node, options?: Partial<InvocationOptions> & { budgetMs?: number }): Promise<InvocationReport>;
  /** Invokes until nothing is left to do, and looks from there: each job is done, and its output stored once. */
  expectAllDone(node: Node, count: number): Promise<void>;
}

/** It takes seconds until a cluster is up: the tests of a file share one, and each finds it whole and empty. */
export function shareCluster(): (app: Pick<App, "streams" | "bindings">) => Promise<Clustered> {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster();
  }, 60_000);
  afterEach(() => cluster.renew(), 60_000);
  afterAll(() => cluster[Symbol.asyncDispose]());

  return async ({ streams, bindings }) => {
    const [first] = cluster.nodes as [Node];
    const definitions = { streams, consumers: bindings.map(({ consumer }) => consumer) };
    const connection = await connect({ url: first.url }, 5_000);
    await apply(connection, definitions);
    const again = await apply(connection, definitions);
    await connection.close();
    await using look = await observe(first);
    const [name, ...names] = await leadersOf(look);
    const leads = (node: Node) => names.filter((name) => name === node.name).length;
    const leader = cluster.nodes.find((node) => node.name === name) as Node;
    const followers = cluster.nodes.filter((node) => node !== leader).toSorted((a, b) => leads(a) - leads(b));
    const run: Clustered["run"] = (node, { budgetMs = 20_000, ...more } = {}) => {
      const deadline = Date.now() + budgetMs;
      const connectTo = (ms: number) => connect({ url: node.url }, ms);
      return invoke({ streams, bindings, connect: connectTo, deadline, log: () => {}, ...more });
    };
    return {
      leader,
      followers: followers as [Node, Node],
      again,
      run,
      async expectAllDone(node, count) {
        const allDone = async () => {
          await run(node);
          await using look = await observe(node);
          // not what Sortie keeps: a record that could not be taken back goes by its age
          expect(await unfinished(look)).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
        };
        await vi.waitFor(allDone, { timeout: 40_000, interval: 100 });
        await using look = await observe(node);
        expect(await deadLetters(look)).toEqual([]);
        expect(await stored(look, "JOBS")).toEqual({ "jobs.done": count });
      },
    };
  };
}

/** Who leads the jobs' consumer, and then the streams. */
async function leadersOf({ jsm }: Observer) {
  const names = [(await jsm.consumers.info("JOBS", "worker")).cluster?.leader];
  for await (const { cluster } of jsm.streams.list()) names.push(cluster?.leader);
  return names;
}

const safeJobs = { ...jobs, replicas: 3 };

/** The jobs' consumer, of a stream with three replicas. */
export function safeWorker(options: Parameters<typeof worker>[0] = {}) {
  return worker({ ackWait: "3s", ...options }, safeJobs);
}

/** Does `act` when so many handlers have been started. */
export function after(count: number, act: () => Promise<void>) {
  let started = 0;
  let acted: Promise<void> | undefined;
  return {
    started() {
      started += 1;
      if (started >= count) acted ??= act();
    },
    done: () => acted,
  };
}
