import { readSync, writeSync } from "node:fs";
import { crashPoints } from "../../src/nats/within.ts";

/** Where something is to happen to a process: at the `nth` time, from 0, that it gets there. */
export interface Strike {
  readonly point: string;
  readonly phase: string;
  readonly nth: number;
}

const control = 3; // a socket of the harness: what it writes there is waited for, with everything else standing still

/** Counts how often this process comes to each of its points, and stands still at one of them. */
export function countPoints(strike: Strike | undefined): ReadonlyMap<string, number> {
  const times = new Map<string, number>();
  crashPoints.reached = (what, phase) => {
    const point = what.replace(/"([a-z]*)[^"]*"/g, "$1…");
    const place = `${phase} ${point}`;
    const nth = times.get(place) ?? 0;
    times.set(place, nth + 1);
    if (strike?.point !== point || strike.phase !== phase || strike.nth !== nth) return;
    writeSync(control, "here\n");
    readSync(control, new Uint8Array(16));
  };
  return times;
}
