import{j as t,l as o}from"./chunk-5IVPSIAI.js";function r(){return t(o,{title:"runs"})}export{r as default};
