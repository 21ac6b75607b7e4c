import { startInWorkerd } from "./hosts.ts";
import { sample } from "./sample.ts";

sample("workerd by way of a hub", (settings) => startInWorkerd(settings, "sample-hub.ts"));
