import { Empty } from "../parts/basics";
import type { RunRecord } from "../records";

export function SpaceView(_: { run: RunRecord }) {
  return <Empty title="space" />;
}
