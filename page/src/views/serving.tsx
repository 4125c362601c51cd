import { Empty } from "../parts/basics";

export default function View() {
  return <Empty title="serving" />;
}
